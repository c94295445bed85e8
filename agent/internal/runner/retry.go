package runner

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// internalTries is how often a request is repeated that made the plugin fail in
// a way of its own: a crash of it may have been the cause, a defect may be.
const internalTries = 5

func (r *Runner) backOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = r.limits.RetryFirst, r.limits.RetryMax
	b.Reset()
	return b
}

// insist sends a request again while Vault cannot answer it, until ctx ends.
func insist[T any](ctx context.Context, t *task, f func(context.Context) (T, error)) (T, error) {
	internal := 0
	attempt := func() (T, error) {
		value, err := f(ctx)
		if err == nil {
			return value, nil
		}
		switch code := codeOf(err); {
		case code == wire.CodeUnavailable:
			return value, err
		case code == wire.CodeInternal && internal < internalTries:
			internal++
			return value, err
		default:
			return value, backoff.Permanent(err)
		}
	}
	value, err := backoff.Retry(ctx, attempt, backoff.WithBackOff(t.runner.backOff()), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, pause time.Duration) {
			t.log.Warn("not done by Vault yet, trying again", "error", err, "pause", pause)
		}))
	if err != nil && ctx.Err() != nil {
		return value, context.Cause(ctx) // why we stopped tells more than what failed last
	}
	var permanent *backoff.PermanentError
	if errors.As(err, &permanent) {
		return value, permanent.Unwrap()
	}
	return value, err
}

func codeOf(err error) wire.Code {
	var failed *operation.Error
	if errors.As(err, &failed) {
		return failed.Code
	}
	var coded *wire.Error
	if errors.As(err, &coded) {
		return coded.Code
	}
	return wire.CodeInternal
}

// failure makes err an operation's error, in a step when it says none itself.
// What Vault said becomes reason and hint; an error without a code is told as
// internal, and its text stays in the log.
func failure(step wire.Step, err error) *operation.Error {
	var failed *operation.Error
	if errors.As(err, &failed) {
		if failed.Step != "" {
			return failed
		}
		placed := *failed
		placed.Step = step
		return &placed
	}
	var coded *wire.Error
	if errors.As(err, &coded) {
		return &operation.Error{Step: step, Code: coded.Code, Reason: coded.Reason, Hint: coded.Hint, Err: err}
	}
	return &operation.Error{Step: step, Code: wire.CodeInternal, Reason: "unexpected failure in the agent", Hint: "see the agent's log", Err: err}
}

// Why work on an operation is stopped.
var (
	errCancelled = &operation.Error{Code: wire.CodeCancelled, Reason: "cancelled on request"}
	errDeadline  = &operation.Error{Code: wire.CodeDeadline, Reason: "the operation took longer than it may"}
	errShutdown  = &operation.Error{Code: wire.CodeAgentRestarted, Reason: "the agent was stopped", Hint: "ask again; drain an agent before stopping it"}
	// errDropped: somebody else decides about this operation now.
	errDropped = &operation.Error{Code: wire.CodeStaleClaim, Reason: "the claim is not the agent's any more"}
)
