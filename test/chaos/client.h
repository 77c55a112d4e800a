/*
 * client.h
 *		One client of the server: its connection, its log, its transactions.
 *
 * test/chaos/client.h
 */
#ifndef CHAOS_CLIENT_H
#define CHAOS_CLIENT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include <libpq-fe.h>

/* What is known of a transaction, by the client itself. */
typedef enum Outcome
{
	OUTCOME_OK,
	OUTCOME_FAIL,
	OUTCOME_UNKNOWN
} Outcome;

/* What a transaction is to be like, beyond its statements. */
typedef enum Mark
{
	MARKED,						/* it leaves a row in chaos.mark */
	UNMARKED					/* it only leases, or only reads */
} Mark;

extern volatile sig_atomic_t stopping;
extern const char *client_name;
extern long client_round;		/* number of the current round */
extern long tx;					/* and of the current transaction */

extern void client_start(const char *name, const char *role, uint64_t seed,
						 const char *log_file, bool async_leases, bool positions);
extern void client_finish(void);
extern void client_disconnect(void);

extern int64_t between(int64_t low, int64_t high);
extern bool one_in(int n);
extern int64_t now_us(void);
extern void sleep_us(int64_t us);
extern void __attribute__((format(printf, 1, 2))) logged(const char *format,...);
extern const char *textf(const char *format,...) __attribute__((format(printf, 1, 2)));

extern void next_round(void);
extern bool begin(const char *kind, Mark mark);
extern PGresult *query(const char *sql, int nparams, const char *const *params);
extern bool command(const char *sql, int nparams, const char *const *params);
extern Outcome commit(void);
extern void rollback(void);
extern bool prepare_transaction(bool to_be_committed);
extern bool finish_prepared(void);
extern int	count_prepared(void);
extern void after_lsn(void);

#endif							/* CHAOS_CLIENT_H */
