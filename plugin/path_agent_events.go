package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// chainRecord is the end of an agent's chain of events. The events themselves are
// kept by Vault's audit devices, through which each request passes.
type chainRecord struct {
	wire.Chain
	// Last are the hashes of the last batch: all or a run of it may come again,
	// when its answer was lost or no audit device took it.
	Last []string `json:"last"`
	// Entities are those the events were written as, the last one at the end. An
	// agent that is set up anew gets another; of those before, some are kept.
	Entities []string `json:"entities,omitempty"`
}

// chainOf returns the chain of an agent; chains are kept in memory.
func (b *backend) chainOf(ctx context.Context, s logical.Storage, agent string) (chainRecord, error) {
	o := b.ops
	o.mu.RLock()
	c, known := o.chains[agent]
	o.mu.RUnlock()
	if known {
		return c, nil
	}
	stored, err := getStored[chainRecord](ctx, s, prefixChain+agent)
	if err != nil {
		return chainRecord{}, err
	}
	c = chainRecord{Chain: wire.Chain{Epoch: "0", Seq: "0"}}
	if stored != nil {
		c = *stored
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if newer, known := o.chains[agent]; known { // written while we read
		return newer, nil
	}
	o.chains[agent] = c
	return c, nil
}

func (b *backend) chain(ctx context.Context, s logical.Storage, agent string) (wire.Chain, error) {
	c, err := b.chainOf(ctx, s, agent)
	return c.Chain, err
}

func (b *backend) pathAgentEvents(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	r, agent, err := b.agentOperation(ctx, req, d)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(r.Agents, agent) {
		return nil, notYourOperation(r.ID, agent)
	}
	texts := fieldOf[[]string](d, wire.EventsKey)
	if !givenAs(req.Data[wire.EventsKey], texts) {
		return nil, invalidField(wire.EventsKey, "must be a list of events as texts, with nothing around them")
	}
	events, err := readEvents(r, agent, texts)
	if err != nil {
		return nil, err
	}
	if r.Claim != nil && r.Claim.Agent == agent {
		b.noteHeard(r.ID)
	}
	chain, err := b.extendChain(ctx, req.Storage, agent, req.EntityID, texts, events)
	if err != nil {
		return nil, err
	}
	if err := b.followEvents(ctx, req.Storage, r, agent, events); err != nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{"epoch": chain.Epoch, "seq": chain.Seq, "head": chain.Head}}, nil
}

// givenAs tells whether a field was given as this very list. The sdk takes one text
// for a list and cuts blanks off; audit devices show what was given, and that must
// have the hashes we know.
func givenAs(given any, list []string) bool {
	switch given := given.(type) {
	case []string:
		return slices.Equal(given, list)
	case []any:
		return slices.EqualFunc(given, list, func(one any, text string) bool { return one == text })
	}
	return len(list) == 0
}

// readEvents parses a batch and checks that it speaks about this agent and this
// operation only. Messages name the position, never the content.
func readEvents(r *operationRecord, agent string, texts []string) ([]wire.Event, error) {
	if len(texts) == 0 {
		return nil, invalidField(wire.EventsKey, "there are no events")
	}
	size := 0
	events := make([]wire.Event, 0, len(texts))
	for i, text := range texts {
		size += len(text)
		if size > wire.EventBatchMaxLen {
			return nil, invalidField(wire.EventsKey, "the batch is larger than %d bytes", wire.EventBatchMaxLen)
		}
		var e wire.Event
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.DisallowUnknownFields() // nothing unknown may hide in the audit log
		if err := decoder.Decode(&e); err != nil {
			return nil, invalidField(wire.EventsKey, "event %d is not an event of version 1", i)
		}
		switch {
		case e.V != 1:
			return nil, invalidField(wire.EventsKey, "event %d has version %d, known is 1", i, e.V)
		case e.Agent != agent:
			return nil, invalidField(wire.EventsKey, "event %d is not of agent %s", i, agent)
		case e.OpID != r.ID:
			return nil, invalidField(wire.EventsKey, "event %d is not about operation %s", i, r.ID)
		case e.Operation != r.Kind || e.Source != r.Source || e.Target != r.Target || e.User != r.Requester:
			return nil, invalidField(wire.EventsKey, "event %d does not describe operation %s: kind, source, target or user differ", i, r.ID)
		}
		if field := wire.ValidEvent(e); field != "" {
			return nil, invalidField(wire.EventsKey, "event %d has a %s that is not of the vocabulary", i, field)
		}
		// Every reader of the audit log must read the same: one way to write an event,
		// with nothing doubled, beside or behind it.
		if written, _, err := e.Encode(); err != nil || written != text {
			return nil, invalidField(wire.EventsKey, "event %d is not written as events are", i)
		}
		events = append(events, e)
	}
	return events, nil
}

// extendChain appends a batch to the agent's chain with one Put, or recognises it
// as part of the last one.
func (b *backend) extendChain(ctx context.Context, s logical.Storage, agent, entity string, texts []string, events []wire.Event) (wire.Chain, error) {
	hashes := make([]string, len(texts))
	for i, text := range texts {
		hashes[i] = wire.EventHash(text)
	}
	defer b.ops.lock(prefixChain + agent)()
	stored, err := b.chainOf(ctx, s, agent)
	if err != nil {
		return wire.Chain{}, err
	}
	record := stored
	record.Entities = withEntity(stored.Entities, entity)
	if containsRun(stored.Last, hashes) {
		if slices.Equal(record.Entities, stored.Entities) {
			return stored.Chain, nil
		}
		// An agent that was set up anew repeats what its last identity sent.
	} else {
		record.Last = hashes
		if record.Chain, err = follow(stored.Chain, hashes, events); err != nil {
			return wire.Chain{}, err
		}
	}
	if err := putStored(ctx, s, prefixChain+agent, record); err != nil {
		// It may have been written all the same: read it again before its next use.
		b.ops.mu.Lock()
		delete(b.ops.chains, agent)
		b.ops.mu.Unlock()
		return wire.Chain{}, err
	}
	b.ops.mu.Lock()
	b.ops.chains[agent] = record
	b.ops.mu.Unlock()
	return record.Chain, nil
}

// entitiesKept is how many identities of an agent are remembered.
const entitiesKept = 32

// withEntity returns known with entity at its end.
func withEntity(known []string, entity string) []string {
	if len(known) > 0 && known[len(known)-1] == entity {
		return known
	}
	next := slices.DeleteFunc(slices.Clone(known), func(other string) bool { return other == entity })
	next = append(next, entity)
	return next[max(0, len(next)-entitiesKept):]
}

// containsRun tells whether run stands in all, in order and without gaps.
func containsRun(all, run []string) bool {
	for start := range all {
		if len(all)-start >= len(run) && slices.Equal(all[start:start+len(run)], run) {
			return true
		}
	}
	return false
}

// follow checks that the events continue the chain and returns its new end.
func follow(chain wire.Chain, hashes []string, events []wire.Event) (wire.Chain, error) {
	broken := func(format string, args ...any) (wire.Chain, error) {
		return wire.Chain{}, &wire.Error{
			Code: wire.CodeChainBroken, Reason: fmt.Sprintf(format, args...),
			Hint: fmt.Sprintf("the chain ends at epoch %s, seq %s", chain.Epoch, chain.Seq),
		}
	}
	epoch, err := strconv.ParseUint(chain.Epoch, 10, 63)
	if err != nil {
		return wire.Chain{}, fmt.Errorf("read chain: %w", err)
	}
	seq, err := strconv.ParseUint(chain.Seq, 10, 63)
	if err != nil {
		return wire.Chain{}, fmt.Errorf("read chain: %w", err)
	}
	if events[0].Epoch == strconv.FormatUint(epoch+1, 10) {
		epoch, seq = epoch+1, 0
	}
	head := chain.Head
	for i, e := range events {
		if e.Epoch != strconv.FormatUint(epoch, 10) || epoch == 0 {
			return broken("event %d has epoch %q", i, e.Epoch)
		}
		if e.Seq != strconv.FormatUint(seq+1, 10) {
			return broken("event %d has seq %q, expected was %d", i, e.Seq, seq+1)
		}
		if e.Prev != head {
			return broken("event %d does not name the event before it", i)
		}
		seq, head = seq+1, hashes[i]
	}
	return wire.Chain{Epoch: strconv.FormatUint(epoch, 10), Seq: strconv.FormatUint(seq, 10), Head: head}, nil
}

// followEvents moves the operation where the events of its running claim say that
// it is. It is repeatable, because a repeated batch comes here too.
func (b *backend) followEvents(ctx context.Context, s logical.Storage, r *operationRecord, agent string, events []wire.Event) error {
	var verifying, switched bool
	for _, e := range events {
		verifying = verifying || (e.EventType == wire.EventStepStarted && e.Phase == wire.StepVerify)
		switched = switched || (e.EventType == wire.EventStepFinished && e.Phase == wire.StepSwitch && e.Outcome == "success")
	}
	if !verifying && !switched {
		return nil
	}
	now := b.now().UTC()
	_, err := b.updateOperation(ctx, s, r.ID, func(r *operationRecord) error {
		if r.Claim == nil || r.Claim.Agent != agent || r.Claim.Phase != wire.PhaseRunning {
			return errUnchanged
		}
		// Before, nothing was copied that could be in place. An agent that told so all the
		// same would make its operation one that nobody can cancel, and that ends as a success.
		switched := switched && r.ShapeConfirmed
		moves := (verifying || switched) && r.State == wire.StateRunning
		if !moves && (!switched || r.Switched) {
			return errUnchanged
		}
		r.Switched = r.Switched || switched
		if moves {
			return r.become(wire.StateVerifying, now)
		}
		r.UpdatedAt = now
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}
