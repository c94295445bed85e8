package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Sender delivers one batch of events of one operation to Vault and returns the
// end of the chain afterwards. Its errors hold a *wire.Error: of code
// unavailable or internal when Vault may have taken the batch nevertheless.
type Sender interface {
	SendEvents(ctx context.Context, operationID string, events []string) (wire.Chain, error)
}

// Options of a sink.
type Options struct {
	Dir   string // of the spool
	Agent string // name of this agent, set in every event
	// MaxBytes is how much may wait for Vault before Record refuses; 16 MiB when 0.
	MaxBytes int
	// Delay is how long an event may wait for others; 2 s when 0.
	Delay time.Duration
	// SendTimeout bounds one request; 15 s when 0.
	SendTimeout time.Duration
	// Ready says whether a device would record an event now: Vault answers a
	// request that nobody records as well. Nil: always.
	Ready func() bool
	Log   hclog.Logger
}

func (o Options) withDefaults() Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 20
	}
	if o.Delay == 0 {
		o.Delay = 2 * time.Second
	}
	if o.SendTimeout == 0 {
		o.SendTimeout = 15 * time.Second
	}
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	return o
}

// Sink takes the agent's events. It is safe for concurrent use.
type Sink struct {
	options Options
	sender  Sender
	log     hclog.Logger

	// spoolMu is held for every write to the spool, and always taken before mu.
	spoolMu sync.Mutex
	spool   *spool

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something below changes
	aligned bool          // our chain is known to continue the plugin's
	// alignAfter is the earliest time of an observation that may align it again:
	// an older one may not have seen our last request.
	alignAfter time.Time
	sending    bool
	tail       position // last event given a place, durable or not
	durable    position // last event in the spool
	queued     []*group // on their way into the spool, in order
	pending    []record // in the spool, not answered
	bytes      int      // of queued and pending
	count      uint64   // records given a number so far
	delivered  uint64   // record.n up to which all are answered
	flush      uint64   // record.n up to which nothing may wait for company
	doubt      doubt
	limit      int  // bytes of a batch; halved when Vault cannot take it
	broken409  int  // refusals for a broken chain since the last success
	damaged    bool // the spool had a hole: everything in it needs a new epoch
	broken     error
	recorded   uint64 // records in the spool so far, those found in it included
	refused    uint64 // records set aside since the start
}

// group is what one Record call writes.
type group struct {
	records []record
	done    chan struct{}
	err     error // valid after done is closed
}

// doubt is a batch that was sent without an answer: the plugin may have taken it.
// Until that is known, only exactly the same batch may be sent. Once it is known
// that the plugin has it, any run of it may be sent again, and must be: an event
// whose answer no device wrote down does not stand in the record.
type doubt struct {
	records  int // length of the batch, or of what is left of it; 0: no doubt
	executed bool
	tries    int
}

// Open reads the spool and makes a sink. Nothing can be recorded or sent before
// the plugin's side of the chain was seen by [Sink.Observe].
func Open(options Options, sender Sender) (*Sink, error) {
	options = options.withDefaults()
	store, found, err := openSpool(options.Dir)
	if err != nil {
		return nil, err
	}
	s := &Sink{
		options: options, sender: sender, log: options.Log.Named("audit"), spool: store,
		changed: make(chan struct{}), limit: wire.EventBatchBytes, pending: found.records, damaged: found.damaged,
	}
	if found.acked != nil {
		s.tail = *found.acked
	}
	now := time.Now()
	for i := range s.pending {
		s.count++
		s.pending[i].n, s.pending[i].at = s.count, now
		s.bytes += len(s.pending[i].text)
		s.tail = s.pending[i].position
	}
	s.durable, s.recorded = s.tail, s.count
	if found.torn > 0 {
		s.log.Warn("cut off events that were not written completely", "bytes", found.torn)
	}
	if found.damaged {
		s.log.Error("the spool is damaged: events are missing in it, a new epoch will begin")
	}
	if len(s.pending) > 0 {
		s.log.Info("events of the last start are still to be delivered", "events", len(s.pending))
	}
	return s, nil
}

// Record gives each event its place in the chain and returns when all of them
// are on disk: either all or none. A full spool is CodeAuditUnavailable. Before
// the plugin's side of the chain is known, Record waits for it.
func (s *Sink) Record(ctx context.Context, events ...wire.Event) error {
	if err := s.wait(ctx, func() bool { return s.aligned || s.broken != nil }); err != nil {
		return fmt.Errorf("record event: %w", err)
	}
	g, err := s.enqueue(events)
	if err != nil {
		return fmt.Errorf("record event: %w", err)
	}
	if err := s.commit(g); err != nil {
		return fmt.Errorf("record event: %w", err)
	}
	return nil
}

// enqueue chains events behind everything before.
func (s *Sink) enqueue(events []wire.Event) (*group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	now := time.Now()
	g := &group{done: make(chan struct{})}
	tail, size := s.tail, 0
	for _, e := range events {
		r, err := chained(e, tail, s.options.Agent, now)
		if err != nil {
			return nil, err
		}
		if len(r.text) > wire.EventBatchMaxLen {
			return nil, &wire.Error{Code: wire.CodeInternal, Reason: fmt.Sprintf("an event of %d bytes is larger than Vault takes", len(r.text))}
		}
		tail = r.position
		size += len(r.text)
		g.records = append(g.records, r)
	}
	if s.bytes+size > s.options.MaxBytes {
		return nil, &wire.Error{
			Code: wire.CodeAuditUnavailable, Reason: fmt.Sprintf("%d bytes of events wait for Vault", s.bytes),
			Hint: "see the agent's log for why Vault does not take them",
		}
	}
	for i := range g.records {
		s.count++
		g.records[i].n = s.count
	}
	s.tail = tail
	s.bytes += size
	s.queued = append(s.queued, g)
	return g, nil
}

func chained(e wire.Event, behind position, agent string, now time.Time) (record, error) {
	next := position{Epoch: behind.Epoch, Seq: behind.Seq + 1}
	c := next.chain()
	e.V, e.Agent, e.Epoch, e.Seq, e.Prev = 1, agent, c.Epoch, c.Seq, behind.Head
	e.Detail = wire.RedactPersonal(e.Detail) // the one free text in an event; this is its last stop before the chain
	if e.T.IsZero() {
		e.T = now.UTC()
	}
	text, hash, err := e.Encode()
	if err != nil {
		return record{}, err
	}
	next.Head = hash
	return record{position: next, op: e.OpID, prev: behind.Head, text: text, at: now}, nil
}

// commit writes everything that is queued, so that many callers share one fsync:
// whoever comes first writes for those who wait behind it.
func (s *Sink) commit(g *group) error {
	s.spoolMu.Lock()
	defer s.spoolMu.Unlock()
	select {
	case <-g.done:
		return g.err
	default:
	}
	s.mu.Lock()
	groups := s.queued
	s.queued = nil
	s.mu.Unlock()
	var records []record
	for _, each := range groups {
		records = append(records, each.records...)
	}
	err := s.spool.append(records)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.durable = records[len(records)-1].position
		s.pending = append(s.pending, records...)
		s.recorded += uint64(len(records))
	} else {
		// What was chained behind the lost events meanwhile is lost with them.
		groups = append(groups, s.queued...)
		s.queued = nil
		s.tail = s.durable
		if errors.Is(err, errBroken) {
			s.broken = err
		}
	}
	for _, each := range groups {
		if err != nil {
			for _, r := range each.records {
				s.bytes -= len(r.text)
			}
		}
		each.err = err
		close(each.done)
	}
	s.signal()
	return g.err
}

// Flush sends without delay and returns when Vault has answered for every event
// of the operation recorded so far.
func (s *Sink) Flush(ctx context.Context, operationID string) error {
	s.mu.Lock()
	var last uint64
	for _, r := range s.pending {
		if r.op == operationID {
			last = r.n
		}
	}
	s.flush = max(s.flush, last)
	s.signal()
	s.mu.Unlock()
	if err := s.wait(ctx, func() bool { return s.delivered >= last }); err != nil {
		return fmt.Errorf("deliver events: %w", err)
	}
	return nil
}

// Backlog is what waits in the spool for Vault.
type Backlog struct {
	Events, Bytes int
	// Oldest is how long the first of them has waited in this process.
	Oldest time.Duration
	// Recorded and Refused count events since the start: on disk in the spool, those found
	// in it included; and set aside because Vault never takes them.
	Recorded, Refused uint64
}

// Backlog is how the spool stands now.
func (s *Sink) Backlog() Backlog {
	s.mu.Lock()
	defer s.mu.Unlock()
	backlog := Backlog{Events: len(s.pending), Bytes: s.bytes, Recorded: s.recorded, Refused: s.refused}
	if len(s.pending) > 0 {
		backlog.Oldest = max(0, time.Since(s.pending[0].at))
	}
	return backlog
}

// Close closes the spool. Record must not be called any more.
func (s *Sink) Close() error {
	s.spoolMu.Lock()
	defer s.spoolMu.Unlock()
	return s.spool.closeFile()
}

// wait returns when done, which is called under mu, says so.
func (s *Sink) wait(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// signal wakes everybody who waits. mu is held.
func (s *Sink) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}
