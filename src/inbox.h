/*
 * inbox.h
 *		Which messages of others were dealt with.
 *
 * src/inbox.h
 */
#ifndef MSGQ_INBOX_H
#define MSGQ_INBOX_H

#include "ring.h"

/* What is due to be done in the inbox. */
typedef struct MsgqInboxWork
{
	bool		turn;			/* the other table is to take new claims */
	bool		empty;			/* the kept table is to be emptied, after */
	int			parts;			/* that many parts of it were moved */
	bool		done;			/* it is */
} MsgqInboxWork;

extern void msgq_inbox_init(void);
extern void msgq_inbox_look(MsgqInboxWork *work);
extern void msgq_inbox_turn(MsgqRound *round);
extern void msgq_inbox_move(int part, MsgqRound *round);
extern bool msgq_inbox_empty(MsgqRound *round);

#endif							/* MSGQ_INBOX_H */
