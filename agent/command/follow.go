package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// How an operation is followed. Each look is a request that Vault audits, so
// long operations are looked at less often.
const (
	lookSoon      = 400 * time.Millisecond // in the first minute
	lookLater     = 2 * time.Second
	lookWaiting   = 5 * time.Second // while people have to approve, or hours to begin
	lookSoonFor   = time.Minute
	lookPauseMost = 10 * time.Second // between looks while Vault does not answer
	lookPatience  = 5 * time.Minute  // without an answer, then we give up
	secondSignal  = 3 * time.Second  // in which another Ctrl-C cancels
)

// operationReader is the part of [vault.Requester] that following needs. It is safe
// for concurrent use.
type operationReader interface {
	Operation(ctx context.Context, id string) (wire.Operation, error)
	Report(ctx context.Context, id string) (*operation.Report, error)
	Cancel(ctx context.Context, id, reason string) error
}

var _ operationReader = (*vault.Requester)(nil)

// followView shows an operation while it goes on.
type followView interface {
	// Update is called with each look; the first time with the operation as it
	// was found or made.
	Update(op wire.Operation)
	// Note is something to know that is no change of the operation.
	Note(text string)
	// Finish shows the end, with the report if there is one. Nothing comes after.
	Finish(op wire.Operation, report *operation.Report, exit int)
	// Leave ends the view of an operation that goes on.
	Leave()
}

// follower follows one operation to its end.
type follower struct {
	reader            operationReader
	view              followView
	signals           <-chan os.Signal
	options           string // of commands that are printed
	cancelOnInterrupt bool
}

// follow returns the exit code, or the error that ended following.
func (f *follower) follow(op wire.Operation) (int, error) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var (
		started     = time.Now()
		failing     time.Time // since when Vault does not answer
		pause       = lookSoon
		interrupted int
		leave       <-chan time.Time
		looked      = make(chan struct{})
		next        wire.Operation
		err         error
	)
	f.view.Update(op)
	look := func(after time.Duration) {
		go func() {
			timer := time.NewTimer(after)
			defer timer.Stop()
			select {
			case <-timer.C:
				next, err = f.reader.Operation(ctx, op.ID)
			case <-ctx.Done():
			}
			select {
			case looked <- struct{}{}:
			case <-ctx.Done():
			}
		}()
	}
	if op.State.Final() {
		return f.finish(ctx, op, interrupted), nil
	}
	look(lookSoon)
	for {
		select {
		case <-looked:
			switch {
			case err == nil:
				if !failing.IsZero() {
					f.view.Note("Vault answers again")
				}
				failing = time.Time{}
				op = next
				f.view.Update(op)
				if op.State.Final() {
					return f.finish(ctx, op, interrupted), nil
				}
				pause = lookSoon
				switch {
				case op.State == wire.StateAwaitingApproval || !op.NotBefore.IsZero():
					pause = lookWaiting
				case time.Since(started) > lookSoonFor:
					pause = lookLater
				}
			case vault.CodeOf(err).Info().Retry:
				if failing.IsZero() {
					failing = time.Now()
					f.view.Note("Vault does not answer; the operation goes on, still trying")
				} else if time.Since(failing) > lookPatience {
					f.view.Leave()
					return 0, err
				}
				pause = min(2*pause, lookPauseMost)
			default:
				f.view.Leave()
				return 0, err
			}
			look(pause)
		case <-f.signals:
			interrupted++
			switch {
			case interrupted == 1 && !f.cancelOnInterrupt:
				f.view.Note(fmt.Sprintf("leaving; the operation goes on. Press Ctrl-C again within %s to cancel it", secondSignal))
				timer := time.NewTimer(secondSignal)
				defer timer.Stop()
				leave = timer.C
			case interrupted == 1 || interrupted == 2 && leave != nil:
				leave = nil
				if err := f.reader.Cancel(ctx, op.ID, ""); err != nil {
					f.view.Leave()
					return 0, err
				}
				f.view.Note("cancelling; press Ctrl-C once more to leave at once")
			default:
				f.view.Leave()
				return wire.ExitInterrupted, nil
			}
		case <-leave:
			f.view.Note("follow it with: dbops operation" + f.options + " -follow " + op.ID)
			f.view.Note("cancel it with: dbops operation" + f.options + " -cancel " + op.ID)
			f.view.Leave()
			return wire.ExitInterrupted, nil
		}
	}
}

func (f *follower) finish(ctx context.Context, op wire.Operation, interrupted int) int {
	exit := exitOf(op)
	if interrupted > 0 {
		exit = wire.ExitInterrupted
	}
	report, err := f.reader.Report(ctx, op.ID)
	if err != nil && !errors.Is(err, context.Canceled) {
		f.view.Note("the report cannot be read: " + err.Error())
	}
	f.view.Finish(op, report, exit)
	return exit
}

// exitOf is the exit code of an operation that has ended.
func exitOf(op wire.Operation) int {
	if code := endCode(op); code != "" {
		return code.Info().Exit
	}
	return 0
}

// endCode is why an operation ended as it did; empty after a success without
// any rest.
func endCode(op wire.Operation) wire.Code {
	switch {
	case op.Result != nil && op.Result.Code != "":
		return op.Result.Code
	case op.State == wire.StateSucceeded:
		return ""
	case op.State == wire.StateDenied && op.Decision.Code != "":
		return op.Decision.Code
	case op.State == wire.StateDenied:
		return wire.CodeDenied
	case op.State == wire.StateCancelled:
		return wire.CodeCancelled
	case op.State == wire.StateExpired:
		return wire.CodeExpired
	default:
		return wire.CodeInternal
	}
}
