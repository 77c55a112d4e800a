/*
 * dependent.c
 *		What keeps a queue, a stream or a topic from being dropped.
 *
 * Something that leads there by its number would lead nowhere afterwards, and
 * whoever relies on it would find out late.  So the drop is refused.  (Bindings
 * go with their targets: a topic says itself what it cannot route.)
 *
 * Whoever makes something that leads there, and whoever drops, has locked
 * metadata (admin.c); so neither misses the other.
 *
 * src/dependent.c
 */
#include "msgq.h"

#include "utils/builtins.h"

#include "capture.h"
#include "dependent.h"
#include "owner.h"
#include "queue.h"

/* One of them for each kind of things that lead to others. */
static const struct
{
	const char *table;			/* the library may be newer than this one */
	const char *names;			/* of those that lead to number %d */
	const char *reason;
	const char *detail;			/* with their names */
	const char *hint;
}			kinds[] = {

	{
		"topic",
		"SELECT name FROM msgq.topic WHERE alternate = %d",
		"it is an alternate",
		"It is the alternate of: %s.",
		"Drop those first, or give them another alternate with msgq.alter_topic()."
	},
	{
		"schedule",
		"SELECT name FROM msgq.schedule WHERE destination_id = %d",
		"schedules send to it",
		"These send to it: %s.",
		"Remove them first with msgq.unschedule(), or give them another destination with msgq.schedule()."
	},
	{
		"capture",
		"SELECT relation::text AS name FROM msgq.capture AS c "
		"WHERE destination_id = %d AND " MSGQ_CAPTURE_LIVES,
		"changes of tables go there",
		"Changes of these tables go there: %s.",
		"Call msgq.uncapture() for each of them first."
	},
};

/* The names of those of a kind that lead there; NULL if there are none. */
static char *
names_of(size_t kind, int32 id)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *names = NULL;
	MsgqSpi		spi;

	if (!OidIsValid(msgq_relation_oid(kinds[kind].table)))
		return NULL;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT string_agg(format('\"%%s\"', name), ', ' ORDER BY name) FROM (%s) AS d",
				 psprintf(kinds[kind].names, id));
	names = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (names)
		names = MemoryContextStrdup(caller, names);
	msgq_spi_end(&spi);
	return names;
}

/* Does anything lead to the queue, stream or topic with this number? */
bool
msgq_has_dependents(int32 id)
{
	for (size_t i = 0; i < lengthof(kinds); i++)
	{
		if (names_of(i, id))
			return true;
	}
	return false;
}

/*
 * Raises 2BP01 if something leads to what is to be dropped: a "queue", "stream"
 * or "topic" with this name and number.
 */
void
msgq_refuse_dependents(const char *what, const char *name, int32 id)
{
	for (size_t i = 0; i < lengthof(kinds); i++)
	{
		char	   *names = names_of(i, id);

		if (names)
			ereport(ERROR,
					(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
					 errmsg("%s \"%s\" cannot be dropped, because %s",
							what, name, kinds[i].reason),
					 errdetail("%s", psprintf(kinds[i].detail, names)),
					 errhint("%s", kinds[i].hint)));
	}
}
