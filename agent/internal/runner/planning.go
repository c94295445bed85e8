package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// plan inspects both sides with accounts that see catalogs only, sends the plan,
// and runs it where the plugin says so at once.
func (t *task) plan(claim wire.Claim) (outcome, error) {
	if err := t.enter(claim); err != nil {
		return outcome{}, err
	}
	plan, err := t.inspect(claim)
	if err != nil {
		return outcome{}, err
	}
	text, err := planText(plan)
	if err != nil {
		return outcome{}, err
	}
	response, err := t.submit(claim, text)
	if err != nil {
		return outcome{}, err
	}
	t.log.Info("plan sent", "state", response.State, "plan_digest", response.PlanDigest)
	if response.Claim == nil {
		return outcome{handedOn: true, state: response.State}, nil
	}
	t.shape = plan.Shape
	t.follow(*response.Claim)
	if err := t.note(func(e *journal.Entry) { e.Claim = *response.Claim }); err != nil {
		return outcome{}, err
	}
	return t.run(*response.Claim)
}

// enter makes the sandbox while the accounts are leased, and hands them over.
func (t *task) enter(claim wire.Claim) error {
	group, ctx := errgroup.WithContext(t.work)
	if t.place.box == nil {
		group.Go(func() error {
			return t.step(ctx, wire.StepSandbox, func() error { return t.place.start(t.work, claim, wire.Source, wire.Target) })
		})
	}
	group.Go(func() error {
		// The accounts outlive a failing sandbox here: what is leased must be known,
		// to be given back.
		lease := func() error { return t.accounts.lease(t.work, claim, wire.Source, wire.Target) }
		if claim.Phase == wire.PhaseRunning {
			return t.step(ctx, wire.StepAccounts, lease)
		}
		return lease()
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if claim.Phase == wire.PhaseRunning {
		t.accounts.keep() // inspecting ones live once, for less than they need
	}
	return t.place.explain(t.place.worker.Open(t.work, t.accounts.open()))
}

// inspect reads both catalogs and decides what is to be done.
func (t *task) inspect(claim wire.Claim) (wire.Plan, error) {
	planner, ok := t.runner.options.Planners[claim.Source.Engine]
	if !ok || claim.Source.Engine != claim.Target.Engine {
		return wire.Plan{}, &operation.Error{
			Step: wire.StepInspect, Code: wire.CodeUnsupported, Reason: fmt.Sprintf("this agent cannot %s %s into %s", claim.Kind, claim.Source.Engine, claim.Target.Engine),
		}
	}
	var source, target json.RawMessage
	err := t.step(t.work, wire.StepInspect, func() error {
		group, ctx := errgroup.WithContext(t.work)
		for side, into := range map[wire.Side]*json.RawMessage{wire.Source: &source, wire.Target: &target} {
			group.Go(func() (err error) {
				*into, err = t.place.worker.Inspect(ctx, side)
				return err
			})
		}
		return t.place.explain(group.Wait())
	})
	if err != nil {
		return wire.Plan{}, err
	}
	plan, err := planner.Plan(claim.Kind, claim.Options, source, target)
	if err != nil {
		return wire.Plan{}, failure(wire.StepPlan, err)
	}
	return plan, nil
}

// submit sends the plan while the inspecting accounts are given back: nobody
// needs them any more, and none may be left when the running ones are leased.
func (t *task) submit(claim wire.Claim, text string) (wire.PlanResponse, error) {
	var response wire.PlanResponse
	err := t.step(t.work, wire.StepPlan, func() error {
		var group errgroup.Group
		group.Go(func() (err error) {
			response, err = t.sendPlan(t.work, claim, text)
			return err
		})
		group.Go(func() error { return t.accounts.giveBack(t.work) })
		return group.Wait()
	})
	return response, err
}

func (t *task) sendPlan(ctx context.Context, claim wire.Claim, text string) (wire.PlanResponse, error) {
	return insist(ctx, t, func(ctx context.Context) (wire.PlanResponse, error) {
		return t.runner.options.Vault.Plan(ctx, t.id, claim.Fence, text)
	})
}

// planText joins a plan by hand: encoding/json would rewrite the bytes of the
// shape, and digests are taken over bytes.
func planText(plan wire.Plan) (string, error) {
	estimates, err := json.Marshal(plan.Estimates)
	if err != nil {
		return "", fmt.Errorf("encode estimates: %w", err)
	}
	var text bytes.Buffer
	text.WriteString(`{"version":` + strconv.Itoa(plan.Version) + `,"shape":`)
	text.Write(plan.Shape)
	text.WriteString(`,"estimates":`)
	text.Write(estimates)
	text.WriteString("}")
	if text.Len() > wire.PlanMaxBytes {
		return "", &operation.Error{
			Step: wire.StepPlan, Code: wire.CodePlanTooLarge, Reason: fmt.Sprintf("the plan has %d bytes, allowed are %d", text.Len(), wire.PlanMaxBytes),
		}
	}
	return text.String(), nil
}
