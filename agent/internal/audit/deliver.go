package audit

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Bounds of delivery.
const (
	minBatchBytes  = 2 << 10
	executedTries  = 2 // of a batch that the plugin took but no device could write down
	brokenTries    = 3 // of a chain that seems to fit and is refused nevertheless
	refusedTries   = 3 // of a batch that can never be taken
	maxSendPause   = 15 * time.Second
	firstSendPause = 200 * time.Millisecond
)

// Run delivers until ctx ends.
func (s *Sink) Run(ctx context.Context) {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = firstSendPause, maxSendPause
	refusals, limit := 0, 0
	for {
		batch, wait, changed := s.next(time.Now())
		if batch == nil {
			if !rest(ctx, wait, changed) {
				return
			}
			continue
		}
		if now := s.batchLimit(); now != limit {
			limit = now
			pauses.Reset() // another size is another attempt
		}
		err := s.send(ctx, batch)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			pauses.Reset()
			refusals = 0
			continue
		case neverTaken(err):
			refusals++
		}
		if refusals >= refusedTries {
			refusals = 0
			s.refuse(batch, err)
		}
		pause := pauses.NextBackOff()
		s.log.Warn("events are not delivered, trying again", "error", err, "events", len(batch), "pause", pause)
		if !rest(ctx, pause, nil) {
			return
		}
	}
}

// rest waits for a time, a change or the end, and reports whether to go on. Zero
// waits without a limit.
func rest(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	var after <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		after = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-after:
	case <-changed:
	}
	return true
}

// next returns the batch to send now, or how long to wait at most for a change.
func (s *Sink) next(now time.Time) (batch []record, wait time.Duration, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.aligned || len(s.pending) == 0 {
		return nil, 0, s.changed
	}
	if !s.options.Ready() {
		return nil, s.options.Delay, s.changed
	}
	length, full := s.batchLength()
	switch {
	case s.doubt.executed:
		length = min(length, s.doubt.records)
	case s.doubt.records > 0:
		length = s.doubt.records
	default:
		due := s.options.Delay - now.Sub(s.pending[0].at)
		if !full && due > 0 && s.flush < s.pending[0].n {
			return nil, due, s.changed
		}
	}
	s.sending = true
	return append([]record(nil), s.pending[:length]...), 0, nil
}

// batchLength takes consecutive events of one operation up to the limits; full
// says that waiting would not make it longer.
func (s *Sink) batchLength() (length int, full bool) {
	size := 0
	for i, r := range s.pending {
		if i > 0 && (r.op != s.pending[0].op || size+len(r.text) > s.limit || i == wire.EventBatchCount) {
			return i, true
		}
		size += len(r.text)
	}
	return len(s.pending), size >= s.limit
}

func (s *Sink) send(ctx context.Context, batch []record) error {
	texts := make([]string, len(batch))
	for i, r := range batch {
		texts[i] = r.text
	}
	last := batch[len(batch)-1]
	expected := last.chain()
	s.mu.Lock()
	if s.doubt.executed {
		expected = s.pending[s.doubt.records-1].chain() // the plugin is there already
	}
	s.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, s.options.SendTimeout)
	defer cancel()
	chain, err := s.sender.SendEvents(limited, batch[0].op, texts)
	if err == nil && chain != expected {
		err = &wire.Error{Code: wire.CodeChainBroken, Reason: "the plugin's chain ends elsewhere after our batch"}
	}
	if err == nil {
		err = s.accept(last)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = false
	s.alignAfter = time.Now()
	switch {
	case err == nil:
		s.broken409 = 0
		if s.doubt.records == 0 {
			s.limit = min(s.limit*2, wire.EventBatchBytes)
		}
	case codeOf(err) == wire.CodeChainBroken:
		s.broken409++
		s.aligned, s.doubt = false, doubt{} // the next observation says where we are
	case inDoubt(err) && s.doubt.executed:
		if s.doubt.tries++; s.doubt.tries >= executedTries {
			s.halve(len(batch))
			s.doubt.tries = 0
		}
	case inDoubt(err):
		s.doubt = doubt{records: len(batch)}
	}
	s.signal()
	return err
}

// accept notes that Vault has answered for everything up to last.
func (s *Sink) accept(last record) error {
	s.spoolMu.Lock()
	defer s.spoolMu.Unlock()
	if err := s.spool.acknowledge(last.position); err != nil {
		return err // the same batch again is harmless
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.pending)
	s.drop(last.n)
	s.doubt.records -= before - len(s.pending)
	if s.doubt.records <= 0 {
		s.doubt = doubt{}
	}
	return nil
}

// drop forgets pending records up to n. mu is held.
func (s *Sink) drop(n uint64) {
	for len(s.pending) > 0 && s.pending[0].n <= n {
		s.bytes -= len(s.pending[0].text)
		s.pending[0].text = ""
		s.pending = s.pending[1:]
	}
	if len(s.pending) == 0 {
		s.pending = nil
	}
	s.delivered = max(s.delivered, n)
	s.signal()
}

// refuse sets a batch aside that Vault will never take, so that the events
// behind it get through. It is the one way an event can miss the record, is
// logged as an error, and shows as a new epoch.
func (s *Sink) refuse(batch []record, cause error) {
	s.log.Error("events are refused for good and set aside in the spool", "error", cause, "operation_id", batch[0].op, "events", len(batch))
	s.spoolMu.Lock()
	defer s.spoolMu.Unlock()
	if err := s.spool.setAside(batch); err != nil {
		s.log.Error("cannot set events aside", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(batch[len(batch)-1].n)
	s.refused += uint64(len(batch))
	s.damaged = true // what is left does not continue the chain any more
	s.aligned, s.doubt = false, doubt{}
}

// Observe compares our chain with the plugin's, as an answer to a request made
// at the time asked has told it. It matters at the start and after a failed
// delivery; else it costs nothing.
func (s *Sink) Observe(chain wire.Chain, asked time.Time) error {
	s.spoolMu.Lock()
	defer s.spoolMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	settled := s.aligned && (s.doubt.records == 0 || s.doubt.executed)
	if settled || s.sending || !asked.After(s.alignAfter) {
		return nil
	}
	theirs, err := parseChain(chain)
	if err != nil {
		return err
	}
	return s.align(theirs)
}

// align finds theirs in our chain. Both locks are held.
func (s *Sink) align(theirs position) error {
	defer s.signal()
	if executed, ok := s.find(theirs); ok && !s.damaged && s.broken409 < brokenTries {
		if executed == 0 && s.doubt.records > 0 {
			// The plugin has not seen the batch: a device may refuse one so large.
			s.halve(s.doubt.records)
		}
		s.doubt = doubt{records: executed, executed: executed > 0}
		s.aligned = true
		return nil
	}
	return s.rebase(theirs)
}

// halve makes batches half as large as the one that did not get through. mu is
// held.
func (s *Sink) halve(records int) {
	size := 0
	for _, r := range s.pending[:records] {
		size += len(r.text)
	}
	s.limit = max(min(s.limit, size)/2, minBatchBytes)
}

func (s *Sink) batchLimit() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit
}

// find returns how many pending events the plugin has taken, when its chain is
// ours.
func (s *Sink) find(theirs position) (executed int, ok bool) {
	for i, r := range s.pending {
		if r.position == theirs {
			return i + 1, true
		}
	}
	if len(s.pending) > 0 {
		first := s.pending[0]
		return 0, continues(theirs, first.position, first.prev)
	}
	return 0, s.durable == theirs && s.durable.Seq > 0 ||
		s.durable.Seq == 0 && s.durable.Epoch == theirs.Epoch+1 && s.durable.Head == theirs.Head
}

// continues reports whether an event at next with prev comes right after before.
func continues(before, next position, prev string) bool {
	if prev != before.Head {
		return false
	}
	return next.Epoch == before.Epoch && next.Seq == before.Seq+1 || next.Epoch == before.Epoch+1 && next.Seq == 1
}

// rebase begins a new epoch behind theirs and moves into it whatever is not
// delivered. Both locks are held.
func (s *Sink) rebase(theirs position) error {
	start := position{Epoch: theirs.Epoch + 1, Head: theirs.Head}
	tail := start
	renumber := func(records []record) ([]record, error) {
		moved := make([]record, 0, len(records))
		for _, r := range records {
			m, err := r.moved(tail, s.options.Agent)
			if err != nil {
				return nil, err
			}
			tail = m.position
			moved = append(moved, m)
		}
		return moved, nil
	}
	pending, err := renumber(s.pending)
	if err != nil {
		return err
	}
	durable := tail
	queued := make([][]record, len(s.queued))
	for i, g := range s.queued {
		if queued[i], err = renumber(g.records); err != nil {
			return err
		}
	}
	if err := s.spool.replace(start, pending); err != nil {
		return err
	}
	if theirs.Epoch > 0 || s.durable.Epoch > 0 {
		s.log.Warn("a new epoch of the event chain begins", "epoch", start.Epoch, "plugin_epoch", theirs.Epoch, "plugin_seq", theirs.Seq,
			"our_epoch", s.durable.Epoch, "our_seq", s.durable.Seq, "events", len(pending))
	}
	s.pending, s.durable, s.tail = pending, durable, tail
	for i, g := range s.queued {
		g.records = queued[i]
	}
	s.bytes = sizeOf(pending) // another place in the chain is another length
	for _, records := range queued {
		s.bytes += sizeOf(records)
	}
	s.aligned, s.damaged, s.doubt, s.broken409 = true, false, doubt{}, 0
	return nil
}

func sizeOf(records []record) int {
	size := 0
	for _, r := range records {
		size += len(r.text)
	}
	return size
}

// moved is the same event at another place.
func (r record) moved(behind position, agent string) (record, error) {
	e, err := decodeEvent(r.text)
	if err != nil {
		return record{}, err
	}
	m, err := chained(e, behind, agent, r.at)
	if err != nil {
		return record{}, err
	}
	m.n = r.n
	return m, nil
}

func codeOf(err error) wire.Code {
	var coded *wire.Error
	if errors.As(err, &coded) {
		return coded.Code
	}
	return wire.CodeUnavailable // nothing is known: Vault may have taken it
}

// inDoubt reports whether Vault may have taken the batch although it failed.
func inDoubt(err error) bool {
	switch codeOf(err) {
	case wire.CodeUnavailable, wire.CodeInternal:
		return true
	default:
		return false
	}
}

// neverTaken reports whether the plugin will refuse the same batch for ever: the
// operation is gone, or the events are not as it wants them. A missing identity
// or binding is not among it, since an operator can mend that.
func neverTaken(err error) bool {
	switch codeOf(err) {
	case wire.CodeNotFound, wire.CodeInvalid:
		return true
	default:
		return false
	}
}
