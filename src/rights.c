/*
 * rights.c
 *		Gives and takes rights on queues, streams and topics.
 *
 * A right is a privilege on the handle, the view msgq.q<id>, msgq.s<id> or
 * msgq.t<id>, so that dumps, DROP ROLE, REASSIGN OWNED and roles' memberships work as for any
 * other object.  Whoever has the right admin may give and take all of them:
 * that is done as the storage's owner, who is then the grantor.
 *
 * The creator of a queue has its rights with grant option, so there can be
 * grants that were made by others with plain GRANT.  A revoke takes those too,
 * each as its grantor, since nobody else can.
 *
 * src/rights.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "argument.h"
#include "owner.h"
#include "queue.h"
#include "stream.h"
#include "topic.h"

/* The privilege on the handle that stands for a right (else 22023). */
static const char *
privilege_of(const char *right)
{
	static const struct
	{
		AclMode		right;
		const char *privilege;
	}			rights[] = {
		{MSGQ_RIGHT_PEEK, "SELECT"},
		{MSGQ_RIGHT_SEND, "INSERT"},
		{MSGQ_RIGHT_RECEIVE, "UPDATE"},
		{MSGQ_RIGHT_MANAGE, "DELETE"},
		{MSGQ_RIGHT_ADMIN, "TRUNCATE"},
	};

	for (size_t i = 0; i < lengthof(rights); i++)
	{
		if (strcmp(right, msgq_right_name(rights[i].right)) == 0)
			return rights[i].privilege;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no right \"%s\"", right),
			 errhint("The rights are peek, send, receive, manage and admin.")));
	return NULL;
}

/* One call of grant or revoke: arguments name, role, right. */
typedef struct RightCall
{
	Oid			handle;			/* of the queue, stream or topic */
	const char *handle_name;	/* as it stands in SQL */
	const char *privilege;
	Oid			role;			/* ACL_ID_PUBLIC for public */
	const char *grantee;		/* as it stands in SQL */
} RightCall;

/* Finds what has this name, and of which the caller has admin. */
static void
find_handle(RightCall *call, const char *name)
{
	const MsgqStream *stream = msgq_stream_find(name);
	const MsgqQueue *queue;

	if (msgq_topic_find(name))
	{
		const MsgqTopic *topic = msgq_topic_get(name, MSGQ_RIGHT_ADMIN);

		call->handle = topic->handle;
		call->handle_name = psprintf("msgq.t%d", topic->id);
		return;
	}
	if (stream)
	{
		stream = msgq_stream_get(name, MSGQ_RIGHT_ADMIN);
		call->handle = stream->handle;
		call->handle_name = psprintf("msgq.s%d", stream->id);
		return;
	}
	queue = msgq_queue_get(name, MSGQ_RIGHT_ADMIN);
	call->handle = queue->handle;
	call->handle_name = psprintf("msgq.q%d", queue->id);
}

static RightCall
right_arguments(FunctionCallInfo fcinfo, const char *command)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "name");
	char	   *role = msgq_arg_text(fcinfo, 1, "role");
	char	   *right = msgq_arg_text(fcinfo, 2, "right");
	RightCall	call;

	msgq_begin_change(command);
	call.privilege = privilege_of(right);
	find_handle(&call, name);
	if (strcmp(role, "public") == 0)
	{
		call.role = ACL_ID_PUBLIC;
		call.grantee = "PUBLIC";
	}
	else
	{
		call.role = get_role_oid(role, false);
		call.grantee = quote_identifier(role);
	}

	/* Two changes of one object's privileges at a time would fail. */
	LockRelationOid(call.handle, ShareUpdateExclusiveLock);
	return call;
}

PG_FUNCTION_INFO_V1(msgq_grant);
Datum
msgq_grant(PG_FUNCTION_ARGS)
{
	RightCall	call = right_arguments(fcinfo, "msgq.grant()");
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("GRANT %s ON %s TO %s", call.privilege, call.handle_name,
				 call.grantee);
	msgq_spi_end(&spi);
	PG_RETURN_VOID();
}

/* Who has given this privilege to this role: in the current memory context. */
static Oid *
grantors_of(const RightCall *call, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {OIDOID, OIDOID, TEXTOID};
	Datum		values[] = {
		ObjectIdGetDatum(call->handle),
		ObjectIdGetDatum(call->role),
		CStringGetTextDatum(call->privilege)
	};
	Oid		   *grantors;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run_with("SELECT DISTINCT a.grantor "
					  "FROM pg_class c, aclexplode(c.relacl) a "
					  "WHERE c.oid = $1 AND a.grantee = $2 AND a.privilege_type = $3",
					  SPI_OK_SELECT, lengthof(values), types, values, NULL,
					  false);
	*n = SPI_processed;
	grantors = MemoryContextAlloc(caller, sizeof(Oid) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		is_null;

		grantors[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1,
													 &is_null));
	}
	msgq_spi_end(&spi);
	return grantors;
}

PG_FUNCTION_INFO_V1(msgq_revoke);
Datum
msgq_revoke(PG_FUNCTION_ARGS)
{
	RightCall	call = right_arguments(fcinfo, "msgq.revoke()");
	int			n;
	Oid		   *grantors = grantors_of(&call, &n);

	/* Only the grantor can take a privilege back. */
	for (int i = 0; i < n; i++)
	{
		MsgqSpi		spi;

		msgq_spi_begin(&spi, grantors[i]);
		msgq_spi_run("REVOKE %s ON %s FROM %s CASCADE", call.privilege,
					 call.handle_name, call.grantee);
		msgq_spi_end(&spi);
	}
	PG_RETURN_VOID();
}
