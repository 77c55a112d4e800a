# msgq: durable queues inside PostgreSQL
#
#   make && make install   build for, and install into, the PostgreSQL that
#                          PG_CONFIG names
#   make installcheck      tests against that installation; pg_regress and the
#                          isolation tests use a running server
#   make demo              a walk through msgq on a server of its own
#   make test              everything, from nothing, on servers of its own
#
# The targets at the end call scripts, which install what they miss; they work
# on a machine that has no PostgreSQL yet.

EXTENSION = msgq
MODULE_big = msgq

# The control file is the one place that states the version.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" msgq.control)

# In the order in which a message passes them.
OBJS = \
	src/msgq.o \
	src/argument.o \
	src/queue.o \
	src/settings.o \
	src/admin.o \
	src/message.o \
	src/send.o \
	src/dedup.o \
	src/limits.o \
	src/storage.o \
	src/store.o \
	src/segment.o \
	src/frontier.o \
	src/group.o \
	src/receive.o \
	src/lease.o \
	src/settle.o \
	src/archive.o \
	src/deadletter.o \
	src/history.o \
	src/filter.o \
	src/redrive.o \
	src/poison.o \
	src/table.o \
	src/stream.o \
	src/streamadmin.o \
	src/append.o \
	src/places.o \
	src/sequencer.o \
	src/sequence.o \
	src/reader.o \
	src/grouplog.o \
	src/consumer.o \
	src/read.o \
	src/retention.o \
	src/streamstats.o \
	src/pattern.o \
	src/topic.o \
	src/topicadmin.o \
	src/route.o \
	src/destination.o \
	src/publish.o \
	src/target.o \
	src/rowjson.o \
	src/outbox.o \
	src/capture.o \
	src/captureadmin.o \
	src/retained.o \
	src/request.o \
	src/cloudevent.o \
	src/inbox.o \
	src/cron.o \
	src/schedule.o \
	src/fire.o \
	src/dependent.o \
	src/wakeup.o \
	src/shared.o \
	src/ring.o \
	src/step.o \
	src/upkeep.o \
	src/maintain.o \
	src/worker.o \
	src/stats.o \
	src/health.o \
	src/inspect.o \
	src/rights.o \
	src/owner.o \
	src/testing.o

# In the order in which CREATE EXTENSION needs them.
SQL_PARTS = \
	src/sql/schema.sql \
	src/sql/queues.sql \
	src/sql/messages.sql \
	src/sql/views.sql \
	src/sql/streams.sql \
	src/sql/topics.sql \
	src/sql/capture.sql \
	src/sql/cloudevents.sql \
	src/sql/inbox.sql \
	src/sql/schedules.sql \
	src/sql/operation.sql \
	src/sql/rights.sql

INSTALL_SCRIPT_SQL = $(EXTENSION)--$(EXTVERSION).sql
DATA_built = $(INSTALL_SCRIPT_SQL)
DATA = $(wildcard src/sql/updates/$(EXTENSION)--*--*.sql)

# Functions that SQL or a callback list calls have parameters that they do not
# need, in core's headers and here.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter

# A new test is a new file; no list names it.
REGRESS = $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
REGRESS_OPTS = --load-extension=$(EXTENSION)

ISOLATION = $(sort $(patsubst test/isolation/specs/%.spec,%,$(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --load-extension=$(EXTENSION)

PROVE_TESTS = $(sort $(wildcard test/tap/*.pl))
ifneq ($(PROVE_TESTS),)
TAP_TESTS = 1
endif

EXTRA_CLEAN = $(EXTENSION)--*.sql src/*.gcno src/*.gcda \
	$(addprefix test/chaos/, driver power disk.so clock.so)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)

ifneq ($(wildcard $(PGXS)),)
include $(PGXS)

# Without dependency tracking (Debian's server is built so), a changed header
# rebuilds everything: it takes seconds, and a stale object costs hours.
$(OBJS): $(wildcard src/*.h)

$(INSTALL_SCRIPT_SQL): $(SQL_PARTS) $(EXTENSION).control
	cat $(SQL_PARTS) > $@.tmp && mv $@.tmp $@
else
all install installcheck:
	@echo "no server development files: $(PG_CONFIG) --pgxs names no file" >&2
	@echo "install postgresql-server-dev-NN, or say make PG_CONFIG=/path/to/pg_config" >&2
	@exit 1
endif

# ---------------------------------------------------------------------------
# Targets that bring their own PostgreSQL server
# ---------------------------------------------------------------------------

.PHONY: demo demo-stop test test-majors test-sanitize test-valgrind chaos chaos-long bench bench-long indent indent-check

# Given on the command line it counts for the scripts as well; else they
# look for an installation themselves.
SCRIPT_ENV = $(if $(filter command line environment,$(origin PG_CONFIG)),PG_CONFIG='$(PG_CONFIG)')

demo:
	@$(SCRIPT_ENV) bash scripts/demo.sh

demo-stop:
	@bash scripts/demo-stop.sh

test:
	@$(SCRIPT_ENV) bash scripts/test.sh

test-majors:
	@bash scripts/test-majors.sh

test-sanitize:
	@$(SCRIPT_ENV) bash scripts/sanitize.sh

test-valgrind:
	@$(SCRIPT_ENV) bash scripts/sanitize.sh --valgrind

chaos:
	@$(SCRIPT_ENV) bash scripts/chaos.sh

chaos-long:
	@$(SCRIPT_ENV) bash scripts/chaos.sh --long

bench:
	@$(SCRIPT_ENV) bash bench/run

bench-long:
	@$(SCRIPT_ENV) bash bench/run --long

indent:
	@$(SCRIPT_ENV) bash scripts/indent.sh

indent-check:
	@$(SCRIPT_ENV) bash scripts/indent.sh --check
