package runner

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Options is the runner's world.
type Options struct {
	MaxOperations int
	Vault         Vault
	Events        Events
	Audit         Audit
	Facts         Facts // nil: others fetch them
	Journal       Journal
	Sandbox       sandbox.Sandbox
	Connect       Connect
	Planners      map[wire.EngineType]Planner
	Limits        Limits
	Observer      Observer // nil: nobody counts
	Log           hclog.Logger
}

// Limits are the patiences of a runner. Zero fields have the defaults.
type Limits struct {
	// AuditWait is how long an operation waits for an audit device; default 1 min.
	AuditWait time.Duration
	// Cleanup is how long one try to clean the target may take; default 1 min.
	Cleanup time.Duration
	// Flush is how long the finish waits for the last events; default 30 s. They
	// are delivered in any case, if need be after it.
	Flush time.Duration
	// Shutdown is how long running operations have to end after SIGTERM; default
	// 75 s. What is left is for the next start.
	Shutdown time.Duration
	// Reconcile is the time between two searches for forgotten sandboxes; default
	// 5 min.
	Reconcile time.Duration
	// Forget is how long the plugin may take to give a claim of the last start
	// back, before its journal entry is dropped; default 30 s.
	Forget time.Duration
	// RetryFirst and RetryMax are the pauses between tries of one request;
	// defaults 200 ms and 5 s.
	RetryFirst, RetryMax time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, each := range []struct {
		limit *time.Duration
		value time.Duration
	}{
		{&l.AuditWait, time.Minute},
		{&l.Cleanup, time.Minute},
		{&l.Flush, 30 * time.Second},
		{&l.Shutdown, 75 * time.Second},
		{&l.Reconcile, 5 * time.Minute},
		{&l.Forget, 30 * time.Second},
		{&l.RetryFirst, 200 * time.Millisecond},
		{&l.RetryMax, 5 * time.Second},
	} {
		if *each.limit == 0 {
			*each.limit = each.value
		}
	}
	return l
}

// Runner does the work of one agent.
type Runner struct {
	options Options
	limits  Limits
	log     hclog.Logger
	boot    string

	polled   atomic.Int64 // UnixNano of the last answer to a poll
	looped   atomic.Int64 // UnixNano of the last turn of the poll loop
	prepared atomic.Bool  // the worker image is there

	// hard ends when even the ending of operations must stop.
	hard  context.Context
	abort context.CancelFunc

	tasks sync.WaitGroup // one per claim, and background work

	mu       sync.Mutex
	active   map[string]*task
	found    map[string]journal.Entry // of the last start, not claimed again yet
	draining bool
}

// New makes a runner.
func New(options Options) *Runner {
	if options.Observer == nil {
		options.Observer = unobserved{}
	}
	r := &Runner{
		options: options, limits: options.Limits.withDefaults(), log: options.Log.Named("runner"),
		boot:   strconv.FormatUint(rand.Uint64(), 36), //nolint:gosec // tells starts apart, is no secret
		active: make(map[string]*task), found: make(map[string]journal.Entry),
	}
	r.hard, r.abort = context.WithCancel(context.Background())
	return r
}

// Alive reports whether the poll loop turns, for a watchdog.
func (r *Runner) Alive() bool {
	return time.Since(time.Unix(0, r.looped.Load())) < time.Minute
}

// Run works until ctx ends, then lets what is running end as failed with code
// agent_restarted, for Limits.Shutdown at most. It returns an error only when it
// could not begin.
func (r *Runner) Run(ctx context.Context) error {
	defer r.abort()
	if err := r.recover(ctx); err != nil {
		return fmt.Errorf("recover from the last start: %w", err)
	}
	background, stop := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { r.prepare(background) })
	helpers.Go(func() { r.reconcile(background) })
	r.poll(ctx)
	stop()
	r.drain(ctx)
	helpers.Wait()
	return nil
}

// poll asks for work until ctx ends.
func (r *Runner) poll(ctx context.Context) {
	failures := r.backOff()
	started := time.Now()
	for ctx.Err() == nil {
		r.looped.Store(time.Now().UnixNano())
		pause, err := r.pollOnce(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			pause = failures.NextBackOff()
			r.log.Warn("cannot poll", "error", err, "pause", pause)
		} else {
			failures.Reset()
			r.forget(ctx, started)
		}
		if !wait.For(ctx, pause) {
			return
		}
	}
}

func (r *Runner) pollOnce(ctx context.Context) (time.Duration, error) {
	request := r.pollRequest()
	asked := time.Now()
	response, err := r.options.Vault.Poll(ctx, request)
	if err != nil {
		return 0, err
	}
	first := r.polled.Swap(time.Now().UnixNano()) == 0
	r.options.Observer.PollAnswered()
	if err := r.options.Events.Observe(response.Chain, asked); err != nil {
		r.log.Error("cannot align the event chain", "error", err)
	}
	if response.Facts != "" && r.options.Facts != nil {
		r.options.Facts.Wake()
	}
	r.drop(request.Held, response.Drop)
	for _, id := range response.Cancel {
		r.stop(id, errCancelled)
	}
	for _, claim := range response.Claims {
		r.take(claim, first)
	}
	pause := time.Duration(response.NextPollMS) * time.Millisecond
	return min(max(pause, 50*time.Millisecond), 30*time.Second), nil
}

func (r *Runner) pollRequest() wire.PollRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	request := wire.PollRequest{
		Version: wire.Version, Boot: r.boot, Held: []string{}, Progress: []string{},
		AuditDevices: strconv.Itoa(r.options.Audit.Count()),
	}
	request.AuditProblem, request.AuditUntuned = r.options.Audit.Problem()
	for _, t := range r.active {
		request.Held = append(request.Held, t.held())
		if progress := t.progressJSON(); progress != "" {
			request.Progress = append(request.Progress, progress)
		}
	}
	slices.Sort(request.Held)
	request.FreeSlots = r.freeSlots()
	return request
}

// take starts work on a claim, unless it is at work already: an answer that was
// lost is given again. A claim on an operation whose last one is just ending
// comes again with the next poll.
func (r *Runner) take(claim wire.Claim, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[claim.OperationID] != nil || r.draining {
		return
	}
	if err := sandbox.CheckOperationID(claim.OperationID); err != nil {
		r.log.Error("refusing a claim", "error", err)
		return
	}
	t := newTask(r, claim)
	if entry, ok := r.found[claim.OperationID]; ok {
		delete(r.found, claim.OperationID)
		t.entry, t.recovered = entry, true
	} else {
		// Nothing is written down here, yet another start may have worked on it and
		// lost its state since.
		t.unsure = first && claim.Phase == wire.PhaseRunning
	}
	r.active[claim.OperationID] = t
	r.tasks.Go(func() {
		defer t.release()
		t.do()
		r.mu.Lock()
		delete(r.active, claim.OperationID)
		r.mu.Unlock()
	})
}

// stop ends the work on an operation for a reason.
func (r *Runner) stop(id string, why error) {
	r.mu.Lock()
	t := r.active[id]
	r.mu.Unlock()
	if t != nil {
		t.stop(why)
	}
}

// drop ends what the plugin says is not ours any more. A claim may have been
// followed by the next one of the same operation since the poll was sent, so only
// the ones that were sent and still stand count.
func (r *Runner) drop(sent, dropped []string) {
	for _, each := range dropped {
		r.mu.Lock()
		for _, t := range r.active {
			held := t.held()
			if (each == held || each == t.id) && slices.Contains(sent, held) {
				t.lose()
			}
		}
		r.mu.Unlock()
	}
}

// drain lets running operations end, while polls go on as a sign of life.
func (r *Runner) drain(ctx context.Context) {
	r.mu.Lock()
	r.draining = true
	for _, t := range r.active {
		t.stop(errShutdown)
	}
	r.mu.Unlock()
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.limits.Shutdown)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		r.tasks.Wait()
		close(ended)
	}()
	signs, stop := context.WithCancel(limited)
	defer stop()
	go func() {
		defer stop()
		select {
		case <-ended:
		case <-limited.Done():
		}
	}()
	r.poll(signs)
	if limited.Err() != nil {
		r.log.Warn("operations did not end in time: the next start will end them")
	}
	r.abort()
	<-ended
}

// prepare makes the worker image; without it no operation is asked for.
func (r *Runner) prepare(ctx context.Context) {
	failures := r.backOff()
	failures.MaxInterval = 30 * time.Second
	for {
		err := r.options.Sandbox.Prepare(ctx)
		if err == nil {
			r.prepared.Store(true)
			return
		}
		if ctx.Err() != nil {
			return
		}
		pause := failures.NextBackOff()
		r.log.Error("cannot prepare sandboxes", "error", err, "pause", pause)
		if !wait.For(ctx, pause) {
			return
		}
	}
}
