/*
 * fire.h
 *		Fires schedules.
 *
 * src/fire.h
 */
#ifndef MSGQ_FIRE_H
#define MSGQ_FIRE_H

#include "datatype/timestamp.h"

#include "ring.h"

extern TimestampTz msgq_fire(int32 schedule_id, MsgqRound *round);
extern bool msgq_fire_log_turn(MsgqRound *round);

#endif							/* MSGQ_FIRE_H */
