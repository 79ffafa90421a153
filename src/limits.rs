//! Every capacity of the box: name, value, unit, and the reason for the value.
//!
//! Owns: the numbers, and the asserts that tie them together. Never: a number that is not a bound (tuning lives
//! with the code it tunes). A bound that is full is answered with a sentence; nothing grows past what stands here.

use std::time::Duration;

// ---- the wire ----

/// Bytes of one upload chunk; part of the frozen protocol (stock clients send exactly this).
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes of one frame from a client: a chunk, its envelope, and as much again for long arguments.
pub const CLIENT_FRAME_BYTES: usize = 1024 * 1024;
/// Bytes of one frame to a client: stock clients close the connection at 1 MiB.
pub const SERVER_FRAME_BYTES: usize = 1_000_000;
/// Bytes of a guest's `send`: one frame less the envelope (type, ids, lengths: under 200 bytes).
pub const MESSAGE_BYTES: usize = SERVER_FRAME_BYTES - 1_000;

/// Values in one frame from a client, keys and elements included: a launch with a few thousand arguments.
/// Serde needs some 32 bytes for each, whatever the frame spent on it.
pub const FRAME_VALUES: usize = 8192;
/// Levels of nesting in a frame: messages have two; unknown fields get a few more.
pub const FRAME_DEPTH: usize = 8;

/// Chunks of one upload: 64 MiB, the most a blob mailbox or a guest's memory could take.
pub const UPLOAD_CHUNKS: u64 = 256;
/// Characters kept of an upload's claimed hash, and of its first error, until its last chunk.
pub const UPLOAD_TEXT_CHARS: usize = 512;
/// Uploads begun and not yet answered, per connection and kind; stock clients have one.
pub const UPLOADS_PER_CONNECTION: usize = 16;
/// Bytes that unfinished uploads of all connections hold together: four of the largest.
pub const UPLOAD_BYTES_HELD: usize = 4 * UPLOAD_CHUNKS as usize * CHUNK_BYTES;
/// Those of one subject: two of the largest.
pub const UPLOAD_BYTES_PER_SUBJECT: usize = UPLOAD_BYTES_HELD / 2;

const _: () = assert!(CHUNK_BYTES + 4096 <= CLIENT_FRAME_BYTES && CHUNK_BYTES + 4096 <= SERVER_FRAME_BYTES);

// ---- connections ----

/// Connections at once, handshakes included. Each may hold a frame that comes in, one whose request waits, and
/// `FRAMES_IN_FLIGHT` that go out.
pub const CONNECTIONS: usize = 128;
/// Of these, those that have not shown a token yet, where one is needed: a client shows it in milliseconds. When there are so
/// many, the one that has been here longest goes for the next.
pub const STRANGERS: usize = CONNECTIONS / 4;
/// Connections of one subject where there are several: half of all, so that none takes the door.
pub const CONNECTIONS_PER_SUBJECT: usize = CONNECTIONS / 2;
const _: () = assert!(STRANGERS + CONNECTIONS_PER_SUBJECT < CONNECTIONS);
/// Bytes of an HTTP request's head; browsers send 1 to 2 KiB.
pub const REQUEST_HEAD_BYTES: usize = 8 * 1024;
/// From accept to WebSocket; a local client needs milliseconds.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// From WebSocket to a good token: a place is not held by nobody in particular.
pub const AUTHENTICATE_WITHIN: Duration = Duration::from_secs(20);
/// How long the answer to a wrong token takes: whoever tries one after the other has so much less of the box.
pub const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(50);
/// How long the answer to a frame that is no message takes, of a client without instances, ...
pub const UNREADABLE_PAUSE: Duration = Duration::from_millis(10);
/// ... and how many of them a connection may send, besides one a second, before it is closed.
pub const UNREADABLE_FRAMES: u64 = 250;
/// Pause after a failed accept: out of descriptors does not pass in microseconds.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of the WebSocket's own read and write buffers, per connection; frames larger than it get their own.
pub const SOCKET_BUFFER_BYTES: usize = 16 * 1024;
/// Silence before the kernel probes a peer: a vanished one is found within a minute.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Pause between probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer that end a connection.
pub const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged by the peer's kernel; more than `READ_STALL`, which speaks first.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Encoded frames waiting to be written to one client: 4 MB at the most.
pub const FRAMES_IN_FLIGHT: usize = 4;
/// Requests of one client that are read while an earlier one is performed, so that its leaving is seen, and an end that it asks
/// for: as many as our clients send without waiting.
pub const REQUESTS_AHEAD: usize = 64;
/// Bytes of their frames, but for the last one's.
pub const REQUEST_BYTES_AHEAD: usize = 64 * 1024;
/// Events of one instance not yet turned into frames, so many that a guest and its reader change places seldom; a
/// guest that sends faster waits.
pub const EVENTS_IN_FLIGHT: usize = 256;
/// Bytes of these events: one of the longest messages, or all of a flood of short ones. With all instances' a quarter of
/// a GB that no client reads. A blob may be larger, up to [`HELD_BYTES`]; then it is the only one on its way, and its guest
/// waits until its last frame is made. Blobs count with what the host holds for their guest until then.
pub const EVENT_BYTES_IN_FLIGHT: usize = MESSAGE_BYTES;
/// How long one frame may wait for a client that does not read before the client is disconnected.
pub const READ_STALL: Duration = Duration::from_secs(15);
/// How long the first blob of an instance waits for a pong; part of the protocol.
pub const PONG_WAIT: Duration = Duration::from_secs(1);
/// `server_event`s about unreadable frames in a connection's life; part of the protocol.
pub const SERVER_EVENTS_PER_CONNECTION: usize = 16;
/// How long `model_status` waits for the engine: a step of a large batch takes less.
pub const STATUS_WAIT: Duration = Duration::from_secs(2);
/// At least this often an open connection's token is held against the wall clock, which may be set meanwhile.
pub const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// Bytes that the io thread itself hashes or copies in one go: a millisecond. More is done on a thread of its own.
pub const IO_THREAD_BYTES: usize = 1 << 20;
/// For the last events, and again for the close frame, when the server ends a connection.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// For all connections to end when the server stops.
pub const SHUTDOWN: Duration = Duration::from_secs(3);
const _: () = assert!(READ_STALL.as_secs() < TCP_USER_TIMEOUT.as_secs());
const _: () = assert!(2 * FAREWELL.as_secs() < SHUTDOWN.as_secs());

// ---- our client ----

/// Events that a client keeps of instances it is not waiting for.
pub const CLIENT_EVENTS: usize = 65_536;
/// Bytes of a blob that a client takes: four guests' memories.
pub const CLIENT_BLOB_BYTES: usize = 256 << 20;

// ---- tokens ----

/// Bytes of a token's text: a dozen claims need 500; checked before anything is decoded.
pub const TOKEN_BYTES: usize = 8 * 1024;
/// Bytes of a token's footer in base64url: a key id needs 60.
pub const TOKEN_FOOTER_BYTES: usize = 1024;
/// Bytes of a token's `sub`; it is part of every key, exported name and topic.
pub const TOKEN_SUBJECT_BYTES: usize = 128;

const _: () = assert!(TOKEN_FOOTER_BYTES < TOKEN_BYTES && TOKEN_BYTES < CLIENT_FRAME_BYTES);

// ---- the configuration ----

/// Tokens per KV page at most: beyond this a page is no longer a unit of sharing.
pub const PAGE_TOKENS_MAX: u32 = 256;
/// Tokens in all KV pages at most; keeps `page * page_size` and byte offsets of one layer within 40 bits.
pub const KV_TOKENS_MAX: u32 = 1 << 24;
/// Tokens in all KV pages at most, unless the operator asks for more: 2,048 for each instance. What is noted of each page
/// of 16 tokens takes some 210 bytes, so this costs 7 MiB also where the pages of a tiny model cost next to nothing.
pub const KV_TOKENS_UNASKED: u32 = 1 << 19;
const _: () = assert!(PAGE_TOKENS_MAX <= KV_TOKENS_FLOOR && KV_TOKENS_FLOOR <= KV_TOKENS_UNASKED);
const _: () = assert!(KV_TOKENS_UNASKED <= KV_TOKENS_MAX && KV_TOKENS_UNASKED as usize == 2048 * INSTANCES);
/// One part in so many of the memory that is free once the weights are loaded holds KV pages, unless the operator says
/// how many tokens there are to be. The rest is for programs, the page cache, and whatever else runs on the box.
pub const KV_SHARE: u64 = 2;
/// Tokens in all KV pages at least, whatever is free: one conversation of a small model. Pages take memory as they are
/// used, so a box that is short of it starts, and serves as long as it can.
pub const KV_TOKENS_FLOOR: u32 = 4096;
/// Embedding slots at most; 64 Ki rows of a wide model are half a gigabyte.
pub const EMBEDS_MAX: u32 = 1 << 16;
/// Rows in a batch at most: bounds the scratch memory of a step.
pub const BATCH_TOKENS_MAX: u32 = 8192;
/// Threads at most: one word of flags per thread in the crew.
pub const THREADS_MAX: usize = 64;

// ---- the model file ----

/// Metadata entries of a GGUF file; real ones have 20 to 60.
pub const GGUF_KEYS: usize = 4096;
/// Tensors of a GGUF file; the largest dense models have about 2,000.
pub const GGUF_TENSORS: usize = 65_536;
/// Files that a model is cut into; the largest in use have under 200. Each is mapped apart.
pub const GGUF_SHARDS: u32 = 1024;
/// Characters of one line about a model file: its texts may be of any length.
pub const MODEL_TEXT_CHARS: usize = 600;
/// Formats of tensors that `tartlet model` lists one by one: with its 16 other lines and one for the rest, 24 lines. Real
/// files mix up to 6.
pub const MODEL_FORMATS: usize = 7;
/// Bytes of a key's or a tensor's name; real ones stay under 80. With the two counts above, the names of a file
/// take at most 68 MiB of memory: each is kept once, for its entry and for the index of names.
pub const GGUF_NAME_BYTES: usize = 1024;
/// Items of one metadata array: 16 times the largest vocabulary in use (256 Ki tokens).
pub const GGUF_ARRAY_ITEMS: usize = 4 * 1024 * 1024;
/// Arrays within arrays; real files do not nest at all.
pub const GGUF_ARRAY_DEPTH: usize = 4;
/// Bytes of `general.alignment`; real files have 32, a large page would make sense.
pub const GGUF_ALIGNMENT: usize = 2 * 1024 * 1024;
/// Transformer blocks of a model; the deepest in use have 126.
pub const MODEL_LAYERS: u32 = 512;
/// Values of one activation row (residual stream, feed-forward, all heads); the widest in use is 53,248.
pub const MODEL_WIDTH: u32 = 256 * 1024;
/// Values of one attention head; real ones have 64 to 256.
pub const MODEL_HEAD: u32 = 1024;
/// Tokens of a vocabulary: 4 times the largest in use. A logits row takes 4 MiB.
pub const MODEL_VOCAB: u32 = 1024 * 1024;
/// Bytes of an unused SentencePiece piece for which it is asked how merges could make it; pieces in use stay under 100.
pub const UNUSED_PIECE_BYTES: usize = 256;
/// Bytes of a special token that is found in text; real ones stay under 40. At each place of a text, as many of them are
/// compared as go on like it: two tokens of a megabyte of one letter took hours.
pub const SPECIAL_TOKEN_BYTES: usize = 256;
/// Positions of a model's trained context; the longest claimed is 10 Mi.
pub const MODEL_CONTEXT: u32 = 16 * 1024 * 1024;

// ---- a GPU ----

/// Memory of a GPU that is left to its driver (modules, graphs, the context) and to others: one part in so many, ...
pub const GPU_RESERVE_SHARE: usize = 16;
/// ... and no more than this, which large cards would never need.
pub const GPU_RESERVE_BYTES: usize = 512 << 20;
/// From a step's begin until the device counts as hung: a hundred times what the engine lets a batch take.
pub const GPU_STEP: Duration = Duration::from_secs(10);
/// Batches under way on a GPU: one runs, and the next is written and launched meanwhile, so that the device need not wait
/// for the host. A third would only wait longer.
pub const GPU_BATCHES: usize = 2;
/// Steps of decoding that are kept as graphs, by their sizes; the one that was not launched for longest goes first.
pub const GPU_GRAPHS: usize = 64;
/// Rows that go through the head together: with 128 Ki tokens 512 KiB of logits each.
pub const GPU_HEAD_ROWS: usize = 64;
/// Words of page tables and masks in one step beside two for each page of the pool, for one sequence that has them all;
/// what has more runs as several steps.
pub const GPU_TABLE_WORDS: usize = 64 << 10;
/// Splits of 256 slots that attention may leave to be joined, over all rows of a launch; a sequence that has the whole pool
/// finds room whatever this says. Heads of 128 take 0.5 KiB each: 64 MiB with 32 of them. So 512 rows of a prompt go at
/// once up to 2,048 slots, and 32 up to 32,768: still enough that they share the pages they read.
pub const GPU_SPLITS: usize = 4096;
/// Bytes of weights that are in host memory at a time on their way to the device.
pub const GPU_UPLOAD_BYTES: usize = 16 << 20;

// ---- the engine ----

/// Bytes of what the ranks of a CPU batch gather for parts of long sequences, to be joined: kept once they were needed. A
/// decode of 32 heads behind 128 Ki slots has 10 MB of it; what has more is not cut into parts.
pub const ATTENTION_PIECES_BYTES: usize = 64 << 20;
/// Commands on their way to the engine while it computes. Four per instance of a box that runs 256: a guest waits for most
/// answers, so it has one or two on the way. Full: the sender waits. (Of what it has not carried out then, credits are the bound.)
pub const ENGINE_INBOX: usize = 1024;
/// Operations of one instance that are queued and not yet done. A tree search of 64 branches, four deep. Full: the
/// guest waits at the call.
pub const OPERATIONS_PER_INSTANCE: usize = 256;
/// Words of 4 bytes that one instance's queued operations take (rows, pages with what waits on them, mask runs): 4 MiB.
/// Full: the guest waits; a single operation that takes more is let in alone.
pub const QUEUED_WORDS_PER_INSTANCE: usize = 1 << 20;
/// Operations of one subject that are queued and not yet done: a tree search each in 32 instances. Full: the guest waits.
pub const OPERATIONS_PER_SUBJECT: usize = 32 * OPERATIONS_PER_INSTANCE;
/// Words that these take: 64 MiB.
pub const QUEUED_WORDS_PER_SUBJECT: usize = 16 * QUEUED_WORDS_PER_INSTANCE;
const _: () = assert!(QUEUED_WORDS_PER_SUBJECT < 1 << 32); // counted in 32 bits
/// Queues of one instance that are open at a time. The SDK opens one per context and fork. More ends the guest.
pub const QUEUES_PER_INSTANCE: usize = 1024;
/// Pages (and, apart, embeds) that one instance can name at a time, imports included: 1 Mi tokens at 16 a page. An
/// import can name a page again and again, so the pool alone is no bound.
pub const NAMES_PER_INSTANCE: usize = 1 << 16;
/// Exported names of one subject and kind.
pub const EXPORTS_PER_SUBJECT: usize = 1024;
/// Pages in the exports of one subject and kind together: as many as one instance can name, four times.
pub const EXPORTED_PER_SUBJECT: usize = 4 * NAMES_PER_INSTANCE;
/// One part in so many of the pool (of each kind, 1 page at least) may lie in the exports of one subject, each page
/// counted once. Exports outlive their maker and nobody's end gives them back, so what a subject can put there is
/// what it can keep from all others for good: never the whole pool. A full share refuses further exports until some
/// are released. Several subjects can still fill the pool together; whoever hands out tokens chooses them.
pub const EXPORTED_SHARE: usize = 2;
/// One part in so many of the KV pages may be kept for what they hold while nobody uses them. They are given up as soon as
/// somebody needs pages, so this bounds the memory of a box that was busy once, not what programs can have.
pub const IDLE_SHARE: usize = 2;
/// Bytes of all public prefixes together, which are tokenized at each start: a few hundred pages of text.
pub const PUBLIC_PREFIX_BYTES: u64 = 1 << 20;
/// Bytes of an exported name.
pub const EXPORT_NAME_BYTES: usize = 1024;
/// Commands of an instance that waits for pages, kept until it has them: its operations, and as many names given
/// back or priorities set in between. More ends the guest.
pub const BACKLOG_PER_INSTANCE: usize = 2 * OPERATIONS_PER_INSTANCE;

// ---- the exchange ----

/// Client messages an instance has not read yet; a stock client that pipelines sends tens.
pub const MAILBOX_MESSAGES: usize = 1024;
/// Bytes of those messages: four of the longest a client can send.
pub const MAILBOX_MESSAGE_BYTES: usize = 4 * CLIENT_FRAME_BYTES;
/// Messages, and apart blobs, that an instance waits for at a time: the SDK asks for one after the other. Giving one of them
/// up in the middle moves the later ones.
pub const RECEIVES: usize = 4096;
/// Blobs an instance has not read yet.
pub const MAILBOX_BLOBS: usize = 64;
/// Bytes of those blobs; as much as one guest's memory.
pub const MAILBOX_BLOB_BYTES: usize = 64 << 20;
/// Bytes of messages and blobs that all instances have not read yet: what a box with 8 GB can spare.
pub const UNREAD_BYTES: usize = 512 << 20;
/// The same for one subject where there are several: half of it, so that none takes it all.
pub const UNREAD_BYTES_PER_SUBJECT: usize = UNREAD_BYTES / 2;

/// Bytes of a topic's name.
pub const TOPIC_NAME_BYTES: usize = 256;
/// Posts a topic remembers, hence how far a subscriber may fall behind before it loses the oldest.
pub const TOPIC_POSTS: usize = 64;
/// Bytes a topic remembers: two of the longest posts.
pub const TOPIC_BYTES: usize = 2 * MESSAGE_BYTES;
/// Topics with subscribers, per subject.
pub const TOPICS_PER_SUBJECT: usize = 1024;
/// Subscriptions per subject: a thousand instances with a few each.
pub const SUBSCRIBERS_PER_SUBJECT: usize = 8192;
/// Bytes that all topics of a subject remember together.
pub const TOPIC_BYTES_PER_SUBJECT: usize = 16 << 20;

/// Bytes of a key.
pub const KVS_KEY_BYTES: usize = 1024;
/// Bytes of a value: what a client could have sent in one message.
pub const KVS_VALUE_BYTES: usize = 1 << 20;
/// Bytes counted for a pair beside its text: an allocation and two map entries in memory, its place in the file.
pub const KVS_PAIR_OVERHEAD_BYTES: usize = 96;
/// Keys of one subject; `store-list-keys` returns them all at once.
pub const KVS_KEYS_PER_SUBJECT: usize = 16_384;
/// Bytes of one subject's pairs.
pub const KVS_BYTES_PER_SUBJECT: usize = 32 << 20;
/// Bytes of all pairs. In memory are the keys alone. The file may take three times this: what a value of 1 MiB rounds up
/// to, and the old copy beside the new one until a commit is done.
pub const KVS_BYTES: usize = 256 << 20;
/// Writes on their way to the disk, until they are answered, and those of one commit: one of every instance. Full: the guest
/// waits.
pub const KVS_WRITES_IN_FLIGHT: usize = INSTANCES;
/// Of these, those of one subject where there are several: half of them, one of each of its instances. Whoever launches, writes
/// and ends leaves writes behind, which must not take all places.
pub const KVS_WRITES_PER_SUBJECT: usize = KVS_WRITES_IN_FLIGHT / 2;
/// Bytes of values, new and replaced, after which a commit takes no further write: what is held in memory meanwhile.
pub const KVS_BATCH_BYTES: usize = 8 << 20;
/// Bytes of the file that are kept in memory: a few values of the longest kind, or all of what most boxes store.
pub const KVS_CACHE_BYTES: usize = 4 << 20;
/// Pause after which a file that failed is opened afresh though nobody writes: a disk that was full has room again.
pub const KVS_REOPEN_PAUSE: Duration = Duration::from_secs(1);

const _: () = assert!(TOPIC_BYTES >= MESSAGE_BYTES && TOPIC_BYTES_PER_SUBJECT >= TOPIC_BYTES);
const _: () = assert!(KVS_BYTES >= KVS_BYTES_PER_SUBJECT && KVS_BYTES_PER_SUBJECT > KVS_VALUE_BYTES);
const _: () = assert!(KVS_BATCH_BYTES > 2 * KVS_VALUE_BYTES && KVS_CACHE_BYTES > KVS_VALUE_BYTES);
const _: () =
    assert!(KVS_WRITES_PER_SUBJECT >= INSTANCES_PER_SUBJECT && MAILBOX_MESSAGE_BYTES >= CLIENT_FRAME_BYTES);

// ---- one forward pass ----

/// Inputs of one pass: the longest context in common use. The engine cuts it into chunks.
pub const PASS_ROWS: usize = 128 * 1024;
/// Outputs of one pass: every row of a long prompt scored.
pub const PASS_OUTPUTS: usize = 16 * 1024;
/// Entries of one distribution, whatever top-k asks (`max_dist_size` of the contract).
pub const DISTRIBUTION_TOKENS: u32 = 1024;
/// Entries of all distributions of one pass: 8 MiB of ids and probabilities.
pub const PASS_DISTRIBUTION_ENTRIES: usize = 1 << 20;

/// Runs of the mask of one pass: eight for each row of the longest.
pub const PASS_RUNS: usize = 8 * PASS_ROWS;

/// Bytes of text that are tokenized in one call: a long book.
pub const TOKENIZED_BYTES: usize = 4 << 20;
/// Tokens that are detokenized in one call: as many as such a text has, at four bytes each.
pub const DETOKENIZED_TOKENS: usize = TOKENIZED_BYTES / 4;
/// Threads that tokenize and detokenize what is long, for all guests.
pub const ASIDE_THREADS: usize = 2;
/// Bytes that the tokens of one call may stand for: four times as many as in common text. As text it is at most three times
/// this, should nothing of it be UTF-8.
pub const DETOKENIZED_BYTES: usize = 4 * TOKENIZED_BYTES;
/// Bytes that the host keeps for one guest behind handles (blobs, also those on their way to its client; half-built passes,
/// results): two full mailboxes.
pub const HELD_BYTES: usize = 2 * MAILBOX_BLOB_BYTES;
/// Characters of an unknown debug query that its answer repeats.
pub const DEBUG_QUERY_ECHO: usize = 256;

// A sequence length, page_size * pages, is a u32.
const _: () = assert!(NAMES_PER_INSTANCE as u64 * PAGE_TOKENS_MAX as u64 <= u32::MAX as u64);

// ---- one guest ----

/// Handles one guest holds at most: a large program keeps hundreds (a pollable per pending pass), a leak shows early.
pub const HANDLES: usize = 65_536;
/// Bytes that a handle counts for among what the host holds, beside its value's own: the allocation, and a small thing behind
/// it that counts nothing itself (a reply to come, a listener, a queue).
pub const HANDLE_BYTES: usize = 160;
/// Bytes that a long argument (a blob, a mask), which is lifted in pieces, may make the host hold.
pub const LIFTED_BYTES: usize = 32 * 1024 * 1024;
/// Bytes that all other arguments of one call may: a text to tokenize, and as much again as a message. A worker copies them
/// in a millisecond or two.
pub const LIFTED_AT_ONCE_BYTES: usize = TOKENIZED_BYTES + (1 << 20);
/// Lists, texts and handles within lists among these, each of which costs some 100 ns: twice what `poll` takes.
pub const LIFTED_ITEMS: usize = 2 * POLLED;
/// Bytes that the smallest allocation takes.
pub const ALLOCATION_BYTES: usize = 32;
/// Fuel of one call of a guest's allocator, which cannot be suspended: 4 ms at most. Growing memory by 32 MiB takes
/// half of it, dlmalloc itself a few hundred.
pub const ALLOCATOR_FUEL: u64 = 1_000_000;
/// Fuel of one instance in its life: about an hour of one core.
pub const FUEL: u64 = 4_000_000_000_000;
/// Linear memory of one instance: a large program's, and a quarter of what all have together.
pub const MEMORY_BYTES: usize = 256 << 20;
/// Entries of an instance's tables: 4 bytes each, which count as memory, and stock programs have a few hundred.
pub const TABLE_ELEMENTS: usize = 1 << 20;
/// From an instance's launch to its end: a day, for one that waits for its client.
pub const WALL_CLOCK_SECONDS: u64 = 24 * 3600;
/// Bytes that an instance may print in its life, as they stand in the log: 200,000 full lines of a terminal's width.
pub const LOG_BYTES: usize = 16 << 20;
/// Bytes in the log of all instances of one subject: a flood of them must not fill the journal.
pub const LOG_BYTES_PER_SUBJECT: usize = 8 * LOG_BYTES;
/// Time gives them back, and no instance's end, for what it printed stays in the log: all within so long, a part each second.
/// Whoever prints without pause has 3 GB a day, which a journal that is rotated can bear; nearly 200 lines a second go on for
/// ever.
pub const LOG_BYTES_BACK_WITHIN: Duration = Duration::from_secs(3600);
/// Bytes that a line in the log has beside its text, counted for its subject: the level, whose it is, the journal's stamp.
pub const LOG_LINE_TAG_BYTES: usize = 96;
/// Memory, linear and of tables, that every instance is sure of, whatever others hold: stock programs start with 1.1 MB
/// and stay below 1.6.
pub const MEMORY_FLOOR_BYTES: usize = 2 * 1024 * 1024;
/// Memory that all instances together may hold beyond that: what a box with 8 GB can spare beside the model.
pub const MEMORY_POOL_BYTES: usize = 1024 * 1024 * 1024;
/// The same for one subject where there are several: half of it, so that none takes the box.
pub const MEMORY_BYTES_PER_SUBJECT: usize = MEMORY_POOL_BYTES / 2;
/// Bytes that the host keeps for one instance without counting them against its subject: what passes in flight take.
pub const HELD_PORTION_BYTES: usize = 1 << 20;
/// Fuel of a module's start function, which cannot be suspended. Rust programs have none.
pub const START_FUEL: u64 = 200_000;
/// Bytes of a worker's native stack. The interpreter's instructions call each other in tail position; should a compiler leave a
/// frame behind at every one of them, a run that cannot be interrupted still fits. Only pages that are used cost memory.
pub const WORKER_STACK_BYTES: usize = 64 * 1024 * 1024;
const _: () = assert!(START_FUEL as usize * 256 < WORKER_STACK_BYTES);
/// Core instances in one guest: program, adapter, shim, fixups, and as many again.
pub const CORE_INSTANCES: usize = 16;
/// Tables in one guest: one per core instance and one to spare each.
pub const CORE_TABLES: usize = 2 * CORE_INSTANCES;
/// Linear memories in one guest: the program's own.
pub const CORE_MEMORIES: usize = 1;
/// Instances alive at once: at 1.3 MB each (a Rust guest's memory, committed) a third of a GB.
pub const INSTANCES: usize = 256;
/// Instances of one subject where there are several, over all its connections: half of them, so that none takes the box.
pub const INSTANCES_PER_SUBJECT: usize = INSTANCES / 2;
/// Subjects of which it is known what their instances have used in the last seconds, and printed in the last hour: of those
/// that live, and as many again that have ended.
pub const ACCOUNTS: usize = 2 * INSTANCES;
/// Pollables in one `poll`: every handle could be one, but nobody waits for more than the passes it has in flight.
pub const POLLED: usize = 4096;
/// Bytes of one write to a body; what `check-write` permits.
pub const STREAM_WRITE_BYTES: usize = 64 * 1024;
/// The same for standard output and error, and the most that WASI asks of a blocking write: every two bytes may be a line of
/// the log.
pub const LOG_WRITE_BYTES: usize = 4096;
/// Bytes of one line of a guest in the log; a longer one is printed in pieces.
pub const LOG_LINE_BYTES: usize = 4096;
/// Random bytes of one call.
pub const RANDOM_BYTES: usize = 1024 * 1024;
/// Bytes of a word (text without a border for the tokenizer) beyond which words are tokenized one at a time. Text
/// that people write has no such words; merging this one takes 3 MiB, one of [`TOKENIZED_BYTES`] 200 MiB.
pub const SHORT_WORD_BYTES: usize = 64 * 1024;
/// Bytes of a prompt template; published ones have up to 30 KiB. Guests fetch it with one host call.
pub const TEMPLATE_BYTES: usize = 256 * 1024;
/// Bytes of a model's own template that is tried: one that names no values is short, and what a single expression of
/// it takes grows with the square.
pub const OWN_TEMPLATE_BYTES: usize = 8 * 1024;
/// Bytes of the stack on which a template is tried: the renderer goes as deep as a sum of 4,000 terms, at up to 2 KiB a
/// level. Only pages that are used cost memory.
pub const TEMPLATE_STACK_BYTES: usize = 64 * 1024 * 1024;
/// minijinja instructions for one message in a template's trial; ours take about 50, published ones under 5,000.
pub const TEMPLATE_STEPS: u64 = 100_000;

// ---- HTTP ----

/// Bytes of a body between who makes it and who takes it: one write of a guest.
pub const BODY_BYTES_IN_FLIGHT: usize = STREAM_WRITE_BYTES;
/// Bytes of all names and values of one set of HTTP fields.
pub const FIELDS_BYTES: usize = 64 * 1024;
/// Fields of one set, each with a name and a value; browsers send some 20.
pub const FIELDS: usize = 256;
/// Server instances in all, each a port and its connections.
pub const SERVERS: usize = 64;
/// Server instances of one subject: an app has one or two, a developer a few more.
pub const SERVERS_PER_SUBJECT: usize = 16;
/// The least port of a server instance: those below are the system's services', one of which may be down just now.
pub const SERVER_PORT_LEAST: u32 = 1024;
/// Connections to all server instances, idle ones that are kept alive included.
pub const HTTP_CONNECTIONS: usize = 512;
/// Connections to the server instances of one subject: half of all, so that none takes them all.
pub const HTTP_CONNECTIONS_PER_SUBJECT: usize = HTTP_CONNECTIONS / 2;
/// Connections to one server instance: twice the requests that it answers at a time.
pub const HTTP_CONNECTIONS_PER_SERVER: usize = 2 * HTTP_REQUESTS;
/// Requests that one server instance answers at a time, each by an instance: a quarter of all there may be.
pub const HTTP_REQUESTS: usize = INSTANCES / 4;
/// How long a request waits for a place before it is answered 503: the instances of earlier ones may be ending.
pub const HTTP_PLACE_WAIT: Duration = Duration::from_millis(500);
/// Bytes of a request's head, and what is read ahead of a body.
pub const HTTP_HEAD_BYTES: usize = 32 * 1024;
/// Fields of a request's head; browsers send some 20.
pub const HTTP_HEAD_FIELDS: usize = 100;
/// From the first byte that could be of a head to its last, and between requests of a connection that is kept alive.
pub const HTTP_HEAD_WITHIN: Duration = Duration::from_secs(20);
/// From a request's head to its response's: as long as a program may think before its first word.
pub const HTTP_ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// From the end of an answer to the end of its instance: for what a program writes down after its last word. As long may
/// one take to end that has thrown its way to answer away, before its client is told.
pub const HTTP_AFTERWARDS: Duration = Duration::from_secs(5);
/// Bytes of a request's body: what a guest's memory could take.
pub const HTTP_BODY_BYTES: u64 = 64 << 20;
/// Time that a client may let a server wait for its body in all, beside what [`HTTP_BODY_BYTES_PER_SECOND`] earns it.
pub const HTTP_BODY_PATIENCE: Duration = Duration::from_secs(30);
/// How fast a body must come at least, beyond that patience: a modem.
pub const HTTP_BODY_BYTES_PER_SECOND: u64 = 4096;
/// How long a client may take nothing of a response that is being sent.
pub const HTTP_READ_STALL: Duration = Duration::from_secs(30);
/// How often it is looked whether a client is still there, for a microsecond each.
pub const HTTP_LOOK: Duration = Duration::from_secs(1);
/// Server instances that are launched and not yet served: each is taken at once.
pub const SERVERS_LAUNCHING: usize = 8;
/// Bytes of a request's path and query, and of its authority, that a guest sets.
pub const URI_BYTES: usize = 8 * 1024;

// ---- HTTP that guests send ----

/// Hosts that programs may call, of the configuration and again of one token: a box knows its neighbours by name.
pub const HTTP_ALLOWED: usize = 64;
/// Requests that one instance may have on their way, bodies included: a guest that fans out to a few services.
pub const OUTGOING_PER_INSTANCE: usize = 8;
/// Requests of one subject's instances on their way: half of all, so that none takes them all.
pub const OUTGOING_PER_SUBJECT: usize = OUTGOING / 2;
/// Requests of all instances on their way, each with a socket and two bodies: 64 KiB each way.
pub const OUTGOING: usize = 64;
/// Names that are looked up at a time. Each takes a thread, which cannot be interrupted when nobody waits any more.
pub const LOOKUPS: usize = 8;
/// Of these, those of one subject where there are several: a name whose server never answers holds its place for half a minute,
/// whoever gave up by then, and whoever may call one such name may call several. Half of them leave as many to all others, who
/// are answered in milliseconds; fewer would slow a subject's own down where nothing is wrong.
pub const LOOKUPS_PER_SUBJECT: usize = LOOKUPS / 2;
/// Addresses of one name that are tried.
pub const ADDRESSES_TRIED: usize = 8;
/// From a request to a connection, the lookup of the name included; not the rest before, where a subject's programs make many.
pub const OUTGOING_CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// From a connection to a response's head: as long as another model may think.
pub const OUTGOING_ANSWER_WITHIN: Duration = HTTP_ANSWER_WITHIN;
/// Silence within a response's body.
pub const OUTGOING_SILENCE: Duration = Duration::from_secs(120);
/// From a request to the end of its response's body, however busily it comes: a guest that reads nothing keeps no socket.
pub const OUTGOING_WITHIN: Duration = Duration::from_secs(3600);
/// Bytes of a body, each way.
pub const OUTGOING_BODY_BYTES: u64 = HTTP_BODY_BYTES;

const _: () = assert!(OUTGOING_PER_INSTANCE <= OUTGOING_PER_SUBJECT);
const _: () = assert!(OUTGOING_ANSWER_WITHIN.as_secs() < OUTGOING_WITHIN.as_secs());

// ---- file descriptors ----

/// Descriptors of the process beside connections: its standard ones, what waits for events, the state's files, programs and
/// blobs on their way to the disk, a device's.
pub const DESCRIPTORS_BESIDE: usize = 128;
/// Descriptors that the process may need at once: every connection there may be, and the rest. Within what a process has
/// unless somebody says otherwise.
pub const DESCRIPTORS: usize =
    CONNECTIONS + HTTP_CONNECTIONS + SERVERS + OUTGOING + 2 * LOOKUPS + DESCRIPTORS_BESIDE;
const _: () = assert!(DESCRIPTORS <= 1024);

// ---- programs ----

/// Bytes of a component: ten times the largest stock program; a JavaScript engine (12 MB) still fits.
pub const PROGRAM_BYTES: usize = 16 * 1024 * 1024;
/// Functions of a program, its adapter included: stock ones have up to 5,000. An instance pays about 64 bytes each.
pub const PROGRAM_FUNCTIONS: usize = 65_536;
/// Globals of a program: stock ones have 3.
pub const PROGRAM_GLOBALS: usize = 10_000;
/// Core imports of a program: stock ones have under 150, and each costs every instance a closure.
pub const PROGRAM_IMPORTS: usize = 4096;
/// Exports of a program's modules.
pub const PROGRAM_EXPORTS: usize = 10_000;
/// Parameters and locals of all functions of a program: stock ones have one in 70 bytes or less, which makes 240,000 in the
/// largest. A few bytes declare 50,000, and translation takes some 6 to 10 ns for each.
pub const PROGRAM_LOCALS: usize = 1 << 20;
/// Of one function: stock ones have 74 at most. Each call clears them all, 3 to 4 ns each, for the fuel of a call: so many make a
/// slice of nothing but calls 7 ms long, 30,000 made it 100.
pub const FUNCTION_LOCALS: usize = 2048;
/// Values that the instructions of a program take and give, beyond 4 of each: stock ones have one in 130 bytes or less, which
/// makes 130,000 in the largest. Every way of a branch may copy all its values, 24 bytes of code each, however few bytes the
/// branch has: 12 KB made 67 MB.
pub const PROGRAM_MOVED: usize = 1 << 20;
/// Programs that are validated and translated at a time, each up to 1.5 s of one core: guests keep the others. (Of one
/// subject's, while the model computes for others: one, with rests.)
pub const TRANSLATIONS: usize = 2;
/// Of these, of one subject where there are several: whoever launches what is not in memory again and again leaves one to others.
pub const TRANSLATIONS_PER_SUBJECT: usize = 1;
/// Programs in the store.
pub const PROGRAMS: usize = 1024;
/// Bytes of all programs in the store: 300 stock programs.
pub const PROGRAM_STORE_BYTES: usize = 512 * 1024 * 1024;
/// Programs that one subject brought, ...
pub const PROGRAMS_PER_SUBJECT: usize = PROGRAMS / 2;
/// ... and their bytes.
pub const PROGRAM_STORE_BYTES_PER_SUBJECT: usize = PROGRAM_STORE_BYTES / 2;
/// Bytes that translated programs take in memory: 170 small ones, or 60 of a megabyte. Those that nobody runs go for others.
pub const PROGRAM_CODE_BYTES: usize = 1 << 30;
/// One part in so many of them may be of programs that one subject runs, where there are several.
pub const PROGRAM_CODE_SHARE: usize = 2;
/// Bytes of memory that a program counts for by each of its component's: code of nothing but calls or branches takes so many;
/// stock programs take 5.
pub const PROGRAM_CODE_BYTES_PER_BYTE: usize = 12;
/// Bytes that each function takes besides: its place, and its code's allocation.
pub const PROGRAM_CODE_BYTES_PER_FUNCTION: usize = 128;
/// Bytes that each of [`PROGRAM_MOVED`] may take: the copy of one value.
pub const PROGRAM_CODE_BYTES_PER_MOVED: usize = 24;
/// Bytes that an element of a table's segment takes besides: one byte can name it, its expression has 24.
pub const PROGRAM_CODE_BYTES_PER_ELEMENT: usize = 12;
const _: () = assert!(
    PROGRAM_BYTES * PROGRAM_CODE_BYTES_PER_BYTE
        + PROGRAM_FUNCTIONS * PROGRAM_CODE_BYTES_PER_FUNCTION
        + PROGRAM_MOVED * PROGRAM_CODE_BYTES_PER_MOVED
        + VALUE_STACK_BYTES
        <= PROGRAM_CODE_BYTES / PROGRAM_CODE_SHARE
);
/// Calls within calls in one guest: a recursive-descent parser on hostile input stays inside, endless recursion ends soon.
pub const CALL_DEPTH: usize = 8192;
/// Bytes of a guest's value stack, beside its linear memory; grows as needed.
pub const VALUE_STACK_BYTES: usize = 2 * 1024 * 1024;

// ---- measuring and evaluation ----

/// Marks of one recording: some 40 a token, so 100,000 tokens; 96 MiB, only while somebody records.
pub const STAGE_MARKS: usize = 4 << 20;
/// Bytes of a synthesised model that are in memory at a time: writes of this size keep any disk busy.
pub const SYNTH_BYTES: usize = 4 << 20;
/// Bytes of a golden file: some 1 kB per step of ten tokens, so tens of thousands of steps.
pub const GOLDEN_BYTES: u64 = 64 * 1024 * 1024;
