/*
 * dependent.h
 *		What keeps a queue, a stream or a topic from being dropped.
 *
 * src/dependent.h
 */
#ifndef MSGQ_DEPENDENT_H
#define MSGQ_DEPENDENT_H

extern bool msgq_has_dependents(int32 id);
extern void msgq_refuse_dependents(const char *what, const char *name, int32 id);

#endif							/* MSGQ_DEPENDENT_H */
