package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Facts are what the plugin does or refuses without an audit device seeing it.
// Noting one is free: it waits in memory, and once a second all that wait are
// stored together. A crash loses what was noted within the second before it.
//
// Stored facts form a chain and stay until somebody who has read them, by which
// they stand in Vault's audit devices, acknowledges them by number.

// Storage keys of facts.
const (
	keyFactsAcked     = "facts/acked"  // factsAcked
	prefixFactsStored = "facts/chunk/" // <number of the first, 20 digits>
)

// Bounds of facts.
const (
	factsKept = 1000
	// factsThatAreMany is how many of them may be such as can be many at a time:
	// they must not push out the others.
	factsThatAreMany = factsKept / 2
	factsInChunk     = 100
	factsAtOnce      = 100
	factsEvery       = time.Second
	// factTextBytes cuts each text of a fact, so that a chunk stays far below
	// Vault's limit.
	factTextBytes = 300
	// repeatWindow is how long equal facts that can be many are counted, not told.
	repeatWindow  = time.Minute
	repeatsKept   = 256
	factsHeldFor  = 30 * time.Second // by one agent that was told to fetch them
	factsStopTime = time.Second
)

// factsAcked is the last fact that stands in an audit device.
type factsAcked struct {
	Seq  uint64 `json:"seq,string"`
	Head string `json:"head"`
}

// factsChunk is a run of stored facts.
type factsChunk struct {
	Facts []string `json:"facts"`
}

// storedFact is one fact that waits to be read.
type storedFact struct {
	seq   uint64
	text  string
	hash  string
	often bool
}

// repeatKey is what facts that are counted together have in common.
type repeatKey struct {
	eventType            wire.EventType
	code                 wire.Code
	rule, entity, object string
	connection           string
}

type repeat struct {
	fact  wire.Fact
	until time.Time
	count int
}

// factBook is what the plugin keeps about facts.
type factBook struct {
	// storing is held across storage calls; it is taken before mu.
	storing sync.Mutex
	loaded  bool // guarded by storing

	mu      sync.Mutex
	noted   []wire.Fact // not stored yet
	often   int         // of those that can be many, among noted and waiting
	repeats map[repeatKey]*repeat
	lost    map[wire.EventType]int
	waiting []storedFact
	chunks  []uint64 // numbers of the first facts of stored chunks, ascending
	acked   factsAcked
	handed  uint64 // highest number that was read from this instance
	holder  string // agent that was told to fetch them
	holds   time.Time
}

func newFactBook() *factBook {
	return &factBook{repeats: map[repeatKey]*repeat{}, lost: map[wire.EventType]int{}}
}

// often reports whether facts like f can be many at a time: anybody causes refusals
// as often as they like, whoever may ask for operations can cancel them as often, one dead server fails every login on it, and the operations
// of a busy day end their retention together. Equal ones are
// counted for a minute, and together they have only a part of the room.
func often(f wire.Fact) bool {
	switch f.EventType {
	case wire.EventAccessDenied, wire.EventRateLimitExceeded, wire.EventUnauthorized, wire.EventRevocationFailed, wire.EventOperationPruned,
		wire.EventCancelRequested:
		return true
	case wire.EventCredentialRotated:
		return f.Outcome == wire.OutcomeFailure
	default:
		return false
	}
}

// noteFact keeps a fact. It makes no call and never waits for storage.
func (b *backend) noteFact(f wire.Fact) {
	f.V, f.T = 1, b.now().UTC()
	if f.Severity == "" {
		f.Severity = wire.SeverityInfo
	}
	for _, text := range []*string{&f.Detail, &f.Object} {
		*text = wire.RedactPersonal(cutText(*text, factTextBytes))
	}
	book := b.facts
	book.mu.Lock()
	defer book.mu.Unlock()
	if !often(f) {
		book.add(f)
		return
	}
	key := keyOf(f)
	if known := book.repeats[key]; known != nil && f.T.Before(known.until) {
		known.count++
		return
	} else if known != nil {
		book.tellRepeats(key, known)
	}
	if len(book.repeats) >= repeatsKept {
		book.lost[f.EventType]++
		return
	}
	book.repeats[key] = &repeat{fact: f, until: f.T.Add(repeatWindow)}
	book.add(f)
}

// add queues a fact if there is room. The caller holds mu.
func (book *factBook) add(f wire.Fact) {
	many := often(f)
	if len(book.noted)+len(book.waiting) >= factsKept || many && book.often >= factsThatAreMany {
		book.lost[f.EventType]++
		return
	}
	if many {
		book.often++
	}
	book.noted = append(book.noted, f)
}

// keyOf tells facts that can be many apart. Logins of one server are one: which
// could not be ended stands in revocations/.
func keyOf(f wire.Fact) repeatKey {
	key := repeatKey{f.EventType, f.Code, f.Rule, f.EntityID, f.Object, f.Connection}
	if f.Connection != "" {
		key.entity = ""
	}
	return key
}

// tellRepeats ends the window of a fact, and tells how often it came again. The
// caller holds mu.
func (book *factBook) tellRepeats(key repeatKey, known *repeat) {
	delete(book.repeats, key)
	if known.count == 0 {
		return
	}
	f := known.fact
	f.T, f.Count = known.until, strconv.Itoa(known.count)
	book.add(f)
}

// storeFacts stores what was noted, one Put for each chunk that grows. After an
// error everything is still noted.
func (b *backend) storeFacts(ctx context.Context, s logical.Storage) error {
	book := b.facts
	book.storing.Lock()
	defer book.storing.Unlock()
	if err := book.load(ctx, s); err != nil {
		return err
	}
	noted := book.due(b.now().UTC())
	for len(noted) > 0 {
		chunk, first, added, err := book.grow(noted)
		if err != nil {
			return err
		}
		if err := putStored(ctx, s, fmt.Sprintf("%s%020d", prefixFactsStored, first), chunk); err != nil {
			return err
		}
		book.mu.Lock()
		book.waiting = append(book.waiting, added...)
		book.noted = book.noted[len(added):]
		if len(book.chunks) == 0 || book.chunks[len(book.chunks)-1] != first {
			book.chunks = append(book.chunks, first)
		}
		book.mu.Unlock()
		noted = noted[len(added):]
	}
	return nil
}

// due closes the windows that are over, adds what was lost once there is room to
// say so, and returns what is to be stored.
func (book *factBook) due(now time.Time) []wire.Fact {
	book.mu.Lock()
	defer book.mu.Unlock()
	for key, known := range book.repeats {
		if !now.Before(known.until) {
			book.tellRepeats(key, known)
		}
	}
	for _, eventType := range wire.EventTypes() {
		if count := book.lost[eventType]; count > 0 && len(book.noted)+len(book.waiting) < factsKept {
			delete(book.lost, eventType)
			book.add(wire.Fact{
				V: 1, T: now, EventType: wire.EventFactsLost, Severity: wire.SeverityError, Outcome: wire.OutcomeFailure,
				Object: string(eventType), Count: strconv.Itoa(count), Detail: "more facts than are kept; see that an agent runs, or read and acknowledge them",
			})
		}
	}
	return slices.Clone(book.noted)
}

// grow gives facts their places in the chain: as many as the last chunk has room
// for, or a new one takes. It returns the chunk as it is to be stored.
func (book *factBook) grow(noted []wire.Fact) (chunk factsChunk, first uint64, added []storedFact, err error) {
	book.mu.Lock()
	defer book.mu.Unlock()
	last := storedFact{seq: book.acked.Seq, hash: book.acked.Head}
	if len(book.waiting) > 0 {
		last = book.waiting[len(book.waiting)-1]
	}
	first = last.seq + 1
	if n := len(book.chunks); n > 0 && last.seq-book.chunks[n-1]+1 < factsInChunk {
		first = book.chunks[n-1]
		for _, f := range book.waiting {
			if f.seq >= first {
				chunk.Facts = append(chunk.Facts, f.text)
			}
		}
		if uint64(len(chunk.Facts)) != last.seq-first+1 {
			first, chunk.Facts = last.seq+1, nil // part of it is acknowledged: it does not grow any more
		}
	}
	for _, f := range noted[:min(len(noted), factsInChunk-len(chunk.Facts))] {
		f.Seq, f.Prev = strconv.FormatUint(last.seq+1, 10), last.hash
		text, hash, err := f.Encode()
		if err != nil {
			return factsChunk{}, 0, nil, err
		}
		last = storedFact{seq: last.seq + 1, text: text, hash: hash, often: often(f)}
		added = append(added, last)
		chunk.Facts = append(chunk.Facts, text)
	}
	return chunk, first, added, nil
}

// load reads what is stored, once. The caller holds storing.
func (book *factBook) load(ctx context.Context, s logical.Storage) error {
	if book.loaded {
		return nil
	}
	acked, err := getStored[factsAcked](ctx, s, keyFactsAcked)
	if err != nil {
		return err
	}
	if acked == nil {
		acked = &factsAcked{}
	}
	names, err := listStored(ctx, s, prefixFactsStored)
	if err != nil {
		return err
	}
	slices.Sort(names) // fixed width: by number
	var waiting []storedFact
	var chunks []uint64
	for _, name := range names {
		first, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			return fmt.Errorf("read facts: %w", err)
		}
		chunk, err := getStored[factsChunk](ctx, s, prefixFactsStored+name)
		if err != nil {
			return err
		}
		if chunk == nil {
			continue
		}
		chunks = append(chunks, first)
		for i, text := range chunk.Facts {
			var f wire.Fact
			if err := json.Unmarshal([]byte(text), &f); err != nil {
				return fmt.Errorf("read fact %d: %w", first+uint64(i), err)
			}
			if seq := first + uint64(i); seq > acked.Seq {
				waiting = append(waiting, storedFact{seq: seq, text: text, hash: wire.EventHash(text), often: often(f)})
			}
		}
	}
	book.mu.Lock()
	defer book.mu.Unlock()
	book.acked, book.waiting, book.chunks, book.handed = *acked, waiting, chunks, acked.Seq
	book.often = 0
	for _, f := range waiting {
		if f.often {
			book.often++
		}
	}
	for _, f := range book.noted {
		if often(f) {
			book.often++
		}
	}
	book.loaded = true
	return nil
}

// readFacts answers the oldest facts that wait.
func (b *backend) readFacts(ctx context.Context, s logical.Storage) (wire.FactsResponse, error) {
	book := b.facts
	book.storing.Lock()
	defer book.storing.Unlock()
	if err := book.load(ctx, s); err != nil {
		return wire.FactsResponse{}, err
	}
	book.mu.Lock()
	defer book.mu.Unlock()
	answer := wire.FactsResponse{
		Facts: []string{}, Seq: strconv.FormatUint(book.acked.Seq, 10), Head: book.acked.Head, Waiting: strconv.Itoa(len(book.waiting)),
	}
	for _, f := range book.waiting[:min(len(book.waiting), factsAtOnce)] {
		answer.Facts = append(answer.Facts, f.text)
		answer.Seq, answer.Head = strconv.FormatUint(f.seq, 10), f.hash
		book.handed = max(book.handed, f.seq)
	}
	return answer, nil
}

// ackFacts forgets facts up to a number. What was acknowledged before is fine; what
// was never handed out cannot stand in an audit device and is refused.
func (b *backend) ackFacts(ctx context.Context, s logical.Storage, seq uint64) error {
	book := b.facts
	book.storing.Lock()
	defer book.storing.Unlock()
	if err := book.load(ctx, s); err != nil {
		return err
	}
	book.mu.Lock()
	handed, acked, chunks := book.handed, book.acked, slices.Clone(book.chunks)
	at := slices.IndexFunc(book.waiting, func(f storedFact) bool { return f.seq == seq })
	var head string
	lastSeq := acked.Seq
	if at >= 0 {
		head = book.waiting[at].hash
		lastSeq = book.waiting[len(book.waiting)-1].seq
	}
	book.mu.Unlock()
	switch {
	case seq <= acked.Seq:
		return nil
	case seq > handed || at < 0:
		return &wire.Error{Code: wire.CodeConflict, Field: "seq", Reason: fmt.Sprintf("fact %d was not handed out; %d was the last", seq, handed), Hint: "read facts again"}
	}
	acked = factsAcked{Seq: seq, Head: head}
	if err := putStored(ctx, s, keyFactsAcked, acked); err != nil {
		book.loaded = false // it may have been written all the same: the storage knows
		return err
	}
	book.mu.Lock()
	for _, f := range book.waiting[:at+1] {
		if f.often {
			book.often--
		}
	}
	book.waiting = slices.Clone(book.waiting[at+1:])
	book.acked = acked
	if len(book.waiting) == 0 {
		book.holder = ""
	}
	book.mu.Unlock()
	// A chunk that a crash leaves here is below what is acknowledged, and goes with
	// the next acknowledgement.
	var errs []error
	for i, first := range chunks {
		end := lastSeq
		if i+1 < len(chunks) {
			end = chunks[i+1] - 1
		}
		if end > seq {
			break
		}
		if err := deleteStored(ctx, s, fmt.Sprintf("%s%020d", prefixFactsStored, first)); err != nil {
			errs = append(errs, err)
			break
		}
		book.mu.Lock()
		book.chunks = slices.DeleteFunc(book.chunks, func(other uint64) bool { return other == first })
		book.mu.Unlock()
	}
	return errors.Join(errs...)
}

// offerFacts says how many facts the agent is to fetch now: one agent at a time,
// which has some time for it.
func (b *backend) offerFacts(agent string, now time.Time) string {
	book := b.facts
	book.mu.Lock()
	defer book.mu.Unlock()
	if len(book.waiting) == 0 || book.holder != "" && book.holder != agent && now.Before(book.holds) {
		return ""
	}
	book.holder, book.holds = agent, now.Add(factsHeldFor)
	return strconv.Itoa(len(book.waiting))
}

// factsEnd is the last acknowledged fact, as the end of a chain.
func (b *backend) factsEnd(ctx context.Context, s logical.Storage) (wire.Chain, error) {
	book := b.facts
	book.storing.Lock()
	defer book.storing.Unlock()
	if err := book.load(ctx, s); err != nil {
		return wire.Chain{}, err
	}
	book.mu.Lock()
	defer book.mu.Unlock()
	if book.acked.Seq == 0 {
		return wire.Chain{Epoch: "0", Seq: "0"}, nil
	}
	return wire.Chain{Epoch: "1", Seq: strconv.FormatUint(book.acked.Seq, 10), Head: book.acked.Head}, nil
}

// keepFacts stores facts until ctx ends, and then what is left.
func (b *backend) keepFacts(ctx context.Context, s logical.Storage) {
	for range rounds(ctx, factsEvery, nil) {
		if err := b.storeFacts(ctx, s); err != nil && ctx.Err() == nil {
			b.Logger().Error("facts cannot be stored and are tried again", "error", err)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), factsStopTime)
	defer cancel()
	if err := b.storeFacts(last, s); err != nil {
		b.Logger().Warn("the facts of the last second are lost", "error", err)
	}
}
