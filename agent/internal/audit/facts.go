package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// FactSource is where facts wait: what the plugin did or refused without an audit
// device seeing it.
type FactSource interface {
	FactsShown(ctx context.Context) (bool, error)
	Facts(ctx context.Context) (wire.FactsResponse, error)
	AckFacts(ctx context.Context, seq string) error
}

// Facts brings facts into Vault's audit devices: it reads them, by which they stand
// there, and acknowledges what it has received. What is interrupted in between is
// read again.
type Facts struct {
	source FactSource
	ready  func() bool
	log    hclog.Logger
	wake   chan struct{}
	hidden rate.Sometimes
}

// NewFacts makes a fetcher. Ready says whether an audit device would record an
// answer now.
func NewFacts(source FactSource, ready func() bool, log hclog.Logger) *Facts {
	return &Facts{
		source: source, ready: ready, log: log.Named("facts"), wake: make(chan struct{}, 1),
		hidden: rate.Sometimes{First: 1, Interval: time.Hour},
	}
}

// Wake makes Run look now.
func (f *Facts) Wake() {
	select {
	case f.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Run fetches whenever it is woken, until ctx ends. What fails is tried again when
// the plugin asks for it again.
func (f *Facts) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		if err := f.fetch(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("facts were not fetched", "error", err)
		}
	}
}

// fetch reads and acknowledges until none is left.
func (f *Facts) fetch(ctx context.Context) error {
	shown, err := f.source.FactsShown(ctx)
	if err != nil {
		return err
	}
	if !shown {
		f.hidden.Do(func() {
			f.log.Error("facts wait in the plugin: the mount hides them from audit devices; run dbops setup", "key", wire.FactsKey)
		})
		return nil
	}
	for f.ready() {
		facts, err := f.source.Facts(ctx)
		if err != nil {
			return err
		}
		if len(facts.Facts) == 0 {
			return nil
		}
		if !f.ready() {
			return errors.New("no audit device may have recorded the answer")
		}
		if err := f.source.AckFacts(ctx, facts.Seq); err != nil {
			return fmt.Errorf("up to %s: %w", facts.Seq, err)
		}
		f.log.Debug("facts are recorded", "count", len(facts.Facts), "seq", facts.Seq)
	}
	return nil
}
