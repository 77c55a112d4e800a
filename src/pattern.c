/*
 * pattern.c
 *		The one matcher of routing keys with patterns.
 *
 * Any number of patterns are compiled into one tree, whose edges are words.  A
 * pattern is a path from the root; where it ends, its number stands.  Three
 * kinds of edges leave a node: those with a word, one for any one word, and
 * one for any number of words, none too.  The node behind the last kind stays
 * where it is with every word: it is said to be greedy.
 *
 * A key is matched with all patterns at once, word by word: the set of nodes
 * that can be reached with the words so far becomes the set for one word more.
 * A node is in the set once, however many ways lead to it, so the work is at
 * most the number of words times that of nodes, also for patterns like
 * #.a.#.b.#, for which backtracking would be exponential.  (The simulation of
 * a nondeterministic automaton by K. Thompson, "Regular Expression Search
 * Algorithm", CACM 11(6), 1968.)
 *
 * The syntaxes are read into the same tree:
 *
 *			words are	one		any number		zero words		elsewhere
 *			split by	word	of words		for that		in a word
 *	AMQP	.			*		#, anywhere		yes				literal
 *	MQTT	/			+		#, at the end	yes				an error
 *	NATS	.			*		>, at the end	no: one or more	literal
 *
 * Sources: AMQP 0-9-1, section 3.1.3.3, with RabbitMQ's reading of it, in which
 * an empty key has no words, and a word may be empty; MQTT 5.0, section 4.7; the
 * rules of subjects in the manual of NATS.  A key that would not be valid in
 * its syntax matches no pattern.
 *
 * src/pattern.c
 */
#include "msgq.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "argument.h"
#include "pattern.h"

/* MQTT's limit, for all of them, and for keys. */
#define MAX_PATTERN_BYTES	65535

/* Where a word leads from a node. */
typedef struct WordEdge
{
	int			from;			/* key: the node */
	int			length;			/* and the word, without an end */
	const char *word;
	int			to;
} WordEdge;

typedef struct PatternNode
{
	int			any_word;		/* behind the edge for one word; 0: none */
	int			any_number;		/* behind that for any number of them */
	bool		is_greedy;
	int			pattern;		/* the last one that ends here, or -1 */
	uint64		step;			/* when it was last put into the set */
} PatternNode;

struct MsgqMatcher
{
	MemoryContext context;
	MsgqSyntax	syntax;
	HTAB	   *edges;
	PatternNode *nodes;			/* the first one is the root */
	int			nnodes;
	int			room;
	int		   *numbers;		/* of the patterns */
	int		   *next;			/* the one before that ends at the same node */
	int			npatterns;
	int			patterns_room;
	uint64		step;
	int		   *set;			/* of nodes, with room for all of them */
	int		   *next_set;
	int			set_room;
};

static uint32
hash_edge(const void *key, Size size)
{
	const WordEdge *edge = key;

	return hash_combine(hash_bytes((const unsigned char *) edge->word,
								   edge->length),
						murmurhash32(edge->from));
}

/* 0 if they are the same. */
static int
compare_edges(const void *left, const void *right, Size size)
{
	const WordEdge *a = left;
	const WordEdge *b = right;

	return a->from != b->from || a->length != b->length ||
		memcmp(a->word, b->word, a->length) != 0;
}

static int
add_node(MsgqMatcher *matcher)
{
	PatternNode *node;

	if (matcher->nnodes == matcher->room)
	{
		matcher->room *= 2;
		matcher->nodes = repalloc(matcher->nodes, sizeof(PatternNode) * matcher->room);
	}
	node = &matcher->nodes[matcher->nnodes];
	memset(node, 0, sizeof(PatternNode));
	node->pattern = -1;
	return matcher->nnodes++;
}

/* A matcher without patterns, in the current memory context. */
MsgqMatcher *
msgq_matcher_create(MsgqSyntax syntax)
{
	MsgqMatcher *matcher = palloc0(sizeof(MsgqMatcher));
	HASHCTL		control = {
		.keysize = offsetof(WordEdge, to),
		.entrysize = sizeof(WordEdge),
		.hash = hash_edge,
		.match = compare_edges,
		.hcxt = CurrentMemoryContext,
	};

	matcher->context = CurrentMemoryContext;
	matcher->syntax = syntax;
	matcher->edges = hash_create("msgq words of patterns", 16, &control,
								 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	matcher->room = 8;
	matcher->nodes = palloc(sizeof(PatternNode) * matcher->room);
	(void) add_node(matcher);
	return matcher;
}

/* ---------------------------------------------------------------------------
 * Words
 * ---------------------------------------------------------------------------
 */

/* A walk over the words of a pattern or a key. */
typedef struct Words
{
	const char *next;			/* NULL: there are no more */
	char		separator;		/* '\0': all is one word */
	const char *word;
	int			length;
} Words;

static Words
words_of(MsgqSyntax syntax, const char *string)
{
	Words		words = {.next = string};

	if (syntax != MSGQ_SYNTAX_EXACT)
		words.separator = syntax == MSGQ_SYNTAX_MQTT ? '/' : '.';
	/* Nothing is no word in AMQP, and one empty word in an exact match. */
	if (string[0] == '\0' && syntax == MSGQ_SYNTAX_AMQP)
		words.next = NULL;
	return words;
}

static bool
next_word(Words *words)
{
	const char *end;

	if (words->next == NULL)
		return false;
	end = words->separator == '\0' ? NULL : strchr(words->next, words->separator);
	words->word = words->next;
	words->length = end ? end - words->next : (int) strlen(words->next);
	words->next = end ? end + 1 : NULL;
	return true;
}

static bool
word_is(const Words *words, const char *word)
{
	return words->length == 1 && words->word[0] == word[0];
}

static bool
word_contains(const Words *words, const char *characters)
{
	for (int i = 0; i < words->length; i++)
	{
		if (strchr(characters, words->word[i]))
			return true;
	}
	return false;
}

/* Could a message have this key?  In AMQP any text that is not too long. */
static bool
is_valid_key(MsgqSyntax syntax, const char *key)
{
	Words		words = words_of(syntax, key);

	if (strlen(key) > MAX_PATTERN_BYTES)
		return false;
	switch (syntax)
	{
		case MSGQ_SYNTAX_MQTT:
			return key[0] != '\0' && strpbrk(key, "+#") == NULL;
		case MSGQ_SYNTAX_NATS:
			while (next_word(&words))
			{
				if (words.length == 0 || word_is(&words, "*") ||
					word_is(&words, ">") || word_contains(&words, " \t\r\n"))
					return false;
			}
			return true;
		default:
			return true;
	}
}

/* ---------------------------------------------------------------------------
 * Compiling
 * ---------------------------------------------------------------------------
 */

static void
refuse_pattern(const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("pattern is not valid"),
			 errdetail("%s", problem),
			 hint ? errhint("%s", hint) : 0));
}

static int
follow_any_word(MsgqMatcher *matcher, int from)
{
	if (matcher->nodes[from].any_word == 0)
	{
		int			to = add_node(matcher);

		matcher->nodes[from].any_word = to;
	}
	return matcher->nodes[from].any_word;
}

/* Any number twice is any number. */
static int
follow_any_number(MsgqMatcher *matcher, int from)
{
	if (matcher->nodes[from].is_greedy)
		return from;
	if (matcher->nodes[from].any_number == 0)
	{
		int			to = add_node(matcher);

		matcher->nodes[from].any_number = to;
		matcher->nodes[to].is_greedy = true;
	}
	return matcher->nodes[from].any_number;
}

static int
follow_word(MsgqMatcher *matcher, int from, const Words *words)
{
	WordEdge	key = {.from = from,.length = words->length,.word = words->word};
	WordEdge   *edge = hash_search(matcher->edges, &key, HASH_FIND, NULL);
	bool		found;

	if (edge == NULL)
	{
		key.word = pnstrdup(words->word, words->length);
		edge = hash_search(matcher->edges, &key, HASH_ENTER, &found);
		edge->to = add_node(matcher);
	}
	return edge->to;
}

static int
add_amqp_word(MsgqMatcher *matcher, int node, const Words *words)
{
	if (word_is(words, "*"))
		return follow_any_word(matcher, node);
	if (word_is(words, "#"))
		return follow_any_number(matcher, node);
	return follow_word(matcher, node, words);
}

static int
add_mqtt_word(MsgqMatcher *matcher, int node, const Words *words)
{
	if (word_is(words, "+"))
		return follow_any_word(matcher, node);
	if (word_contains(words, "+#") && !word_is(words, "#"))
		refuse_pattern("A wildcard of MQTT must be a whole level.", NULL);
	if (!word_is(words, "#"))
		return follow_word(matcher, node, words);
	if (words->next)
		refuse_pattern("The wildcard # of MQTT must be the last level.", NULL);
	return follow_any_number(matcher, node);
}

static int
add_nats_word(MsgqMatcher *matcher, int node, const Words *words)
{
	if (words->length == 0 || word_contains(words, " \t\r\n"))
		refuse_pattern("A subject of NATS has no empty tokens and no white space.",
					   NULL);
	if (word_is(words, "*"))
		return follow_any_word(matcher, node);
	if (!word_is(words, ">"))
		return follow_word(matcher, node, words);
	if (words->next)
		refuse_pattern("The wildcard > of NATS must be the last token.", NULL);
	return follow_any_number(matcher, follow_any_word(matcher, node));
}

/* The node where the pattern ends. */
static int
add_path(MsgqMatcher *matcher, const char *pattern)
{
	Words		words = words_of(matcher->syntax, pattern);
	int			node = 0;

	while (next_word(&words))
	{
		switch (matcher->syntax)
		{
			case MSGQ_SYNTAX_AMQP:
				node = add_amqp_word(matcher, node, &words);
				break;
			case MSGQ_SYNTAX_MQTT:
				node = add_mqtt_word(matcher, node, &words);
				break;
			case MSGQ_SYNTAX_NATS:
				node = add_nats_word(matcher, node, &words);
				break;
			case MSGQ_SYNTAX_EXACT:
				node = follow_word(matcher, node, &words);
				break;
		}
	}
	return node;
}

/*
 * Adds a pattern, which will be told by this number.  Raises 22023 if it is
 * not valid in the matcher's syntax; the matcher is then of no use any more.
 */
void
msgq_matcher_add(MsgqMatcher *matcher, const char *pattern, int number)
{
	MemoryContext caller = MemoryContextSwitchTo(matcher->context);
	int			node;

	if (strlen(pattern) > MAX_PATTERN_BYTES)
		refuse_pattern(psprintf("It has more than %d bytes.", MAX_PATTERN_BYTES),
					   NULL);
	if (matcher->syntax == MSGQ_SYNTAX_MQTT && pattern[0] == '\0')
		refuse_pattern("A filter of MQTT must not be empty.", NULL);
	if (matcher->syntax == MSGQ_SYNTAX_MQTT && strncmp(pattern, "$share/", 7) == 0)
		refuse_pattern("It is that of a shared subscription of MQTT, which is no pattern.",
					   "Consumers of one queue share its messages: bind a queue to the part after the group.");
	node = add_path(matcher, pattern);

	if (matcher->npatterns == 0)
	{
		matcher->patterns_room = 4;
		matcher->numbers = palloc(sizeof(int) * matcher->patterns_room);
		matcher->next = palloc(sizeof(int) * matcher->patterns_room);
	}
	else if (matcher->npatterns == matcher->patterns_room)
	{
		matcher->patterns_room *= 2;
		matcher->numbers = repalloc(matcher->numbers,
									sizeof(int) * matcher->patterns_room);
		matcher->next = repalloc(matcher->next,
								 sizeof(int) * matcher->patterns_room);
	}
	matcher->numbers[matcher->npatterns] = number;
	matcher->next[matcher->npatterns] = matcher->nodes[node].pattern;
	matcher->nodes[node].pattern = matcher->npatterns++;
	MemoryContextSwitchTo(caller);
}

/* ---------------------------------------------------------------------------
 * Matching
 * ---------------------------------------------------------------------------
 */

/* Puts a node into the set, with what can be reached without a word. */
static void
reach(MsgqMatcher *matcher, int node, int *n)
{
	while (node != 0 && matcher->nodes[node].step != matcher->step)
	{
		matcher->nodes[node].step = matcher->step;
		matcher->next_set[(*n)++] = node;
		node = matcher->nodes[node].any_number;
	}
}

/* The set of the root alone. */
static int
begin(MsgqMatcher *matcher, bool with_wildcards)
{
	int			n = 0;

	if (matcher->set_room < matcher->nnodes)
	{
		matcher->set_room = matcher->room;
		matcher->set = MemoryContextAlloc(matcher->context,
										  sizeof(int) * matcher->set_room);
		matcher->next_set = MemoryContextAlloc(matcher->context,
											   sizeof(int) * matcher->set_room);
	}
	matcher->step++;
	matcher->next_set[n++] = 0;
	if (with_wildcards)
		reach(matcher, matcher->nodes[0].any_number, &n);
	return n;
}

/* The set after one word more. */
static int
advance(MsgqMatcher *matcher, int n, const Words *words, bool with_wildcards)
{
	int			reached = 0;

	CHECK_FOR_INTERRUPTS();
	matcher->step++;
	for (int i = 0; i < n; i++)
	{
		int			node = matcher->set[i];
		WordEdge	key = {.from = node,.length = words->length,.word = words->word};
		WordEdge   *edge = hash_search(matcher->edges, &key, HASH_FIND, NULL);

		if (edge)
			reach(matcher, edge->to, &reached);
		if (with_wildcards)
			reach(matcher, matcher->nodes[node].any_word, &reached);
		if (matcher->nodes[node].is_greedy)
			reach(matcher, node, &reached);
	}
	return reached;
}

/*
 * Stores the numbers of all patterns that match the key, in no order; numbers
 * has room for all that were added.  Returns how many.
 */
int
msgq_matcher_match(MsgqMatcher *matcher, const char *key, int *numbers)
{
	Words		words = words_of(matcher->syntax, key);
	int			found = 0;
	int			n;

	/* In MQTT the first level of a server's own topics needs to be named. */
	bool		with_wildcards = matcher->syntax != MSGQ_SYNTAX_MQTT || key[0] != '$';

	if (!is_valid_key(matcher->syntax, key))
		return 0;
	n = begin(matcher, with_wildcards);
	for (;;)
	{
		int		   *reached = matcher->next_set;

		matcher->next_set = matcher->set;
		matcher->set = reached;
		if (n == 0 || !next_word(&words))
			break;
		n = advance(matcher, n, &words, with_wildcards);
		with_wildcards = true;
	}
	for (int i = 0; i < n; i++)
	{
		for (int pattern = matcher->nodes[matcher->set[i]].pattern; pattern >= 0;
			 pattern = matcher->next[pattern])
			numbers[found++] = matcher->numbers[pattern];
	}
	return found;
}

/* ---------------------------------------------------------------------------
 * By SQL
 * ---------------------------------------------------------------------------
 */

static MsgqSyntax
syntax_named(const char *name)
{
	if (strcmp(name, "amqp") == 0)
		return MSGQ_SYNTAX_AMQP;
	if (strcmp(name, "mqtt") == 0)
		return MSGQ_SYNTAX_MQTT;
	if (strcmp(name, "nats") == 0)
		return MSGQ_SYNTAX_NATS;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no syntax \"%s\"", name),
			 errhint("The syntaxes are amqp, mqtt and nats.")));
	return MSGQ_SYNTAX_AMQP;
}

/* The pattern of the last call of an expression. */
typedef struct LastPattern
{
	MemoryContext context;		/* of what follows */
	char	   *pattern;
	MsgqSyntax	syntax;
	MsgqMatcher *matcher;
} LastPattern;

/* Compiles the pattern, unless the last call had the same one. */
static MsgqMatcher *
matcher_for(FmgrInfo *function, const char *pattern, MsgqSyntax syntax)
{
	LastPattern *last = function->fn_extra;
	MemoryContext caller;

	if (last == NULL)
	{
		last = MemoryContextAllocZero(function->fn_mcxt, sizeof(LastPattern));
		last->context = AllocSetContextCreate(function->fn_mcxt, "msgq pattern",
											  ALLOCSET_SMALL_SIZES);
		function->fn_extra = last;
	}
	if (last->matcher && last->syntax == syntax &&
		strcmp(last->pattern, pattern) == 0)
		return last->matcher;
	last->matcher = NULL;
	MemoryContextReset(last->context);
	caller = MemoryContextSwitchTo(last->context);
	last->pattern = pstrdup(pattern);
	last->syntax = syntax;
	last->matcher = msgq_matcher_create(syntax);
	msgq_matcher_add(last->matcher, pattern, 0);
	MemoryContextSwitchTo(caller);
	return last->matcher;
}

/* topic_matches(pattern, routing_key, syntax) */
PG_FUNCTION_INFO_V1(msgq_topic_matches);
Datum
msgq_topic_matches(PG_FUNCTION_ARGS)
{
	char	   *pattern = msgq_arg_text(fcinfo, 0, "pattern");
	char	   *key = msgq_arg_text(fcinfo, 1, "routing_key");
	MsgqSyntax	syntax = syntax_named(msgq_arg_text(fcinfo, 2, "syntax"));
	MsgqMatcher *matcher = matcher_for(fcinfo->flinfo, pattern, syntax);
	int			number;

	PG_RETURN_BOOL(msgq_matcher_match(matcher, key, &number) > 0);
}
