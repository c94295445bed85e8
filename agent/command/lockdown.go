package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// lockdownCommand stops everything, waits until nothing is left, and writes down
// what an investigator needs.
type lockdownCommand struct {
	console *console
	vault   vaultFlags
	reason  string
	rotate  bool
	show    bool
	since   string
	out     string
	timeout time.Duration
}

var _ cli.Command = (*lockdownCommand)(nil)

func (l *lockdownCommand) flags() *flag.FlagSet {
	set := newFlags("lockdown")
	l.vault.register(set)
	set.StringVar(&l.reason, "reason", "", "`Text` that says why; everybody who is refused sees it.")
	set.BoolVar(&l.rotate, "rotate", false, "Rotate all static and root credentials too. It breaks applications that use static roles.")
	set.BoolVar(&l.show, "show", false, "Only show whether the mount is locked and what is left.")
	set.StringVar(&l.since, "since", "168h", "`Time` from when on operations are written down: RFC 3339, or a duration before now.")
	set.StringVar(&l.out, "out", "", "`Directory` for the evidence; must not exist. Default: dbops-lockdown-<time>.")
	set.DurationVar(&l.timeout, "timeout", 5*time.Minute, "`Duration` to wait until nothing is left; the lockdown holds in any case.")
	return set
}

// Synopsis is the line in dbops -help.
func (*lockdownCommand) Synopsis() string { return "Stop everything in an emergency" }

// Help is the whole help.
func (l *lockdownCommand) Help() string {
	return `Usage: dbops lockdown [options]

  Locks the mount: nothing is given, begun or changed any more. Waits until every
  operation is stopped and every account ended, revokes all leases of the mount,
  and writes what an investigator needs into a directory that only you can read:
  operations with decisions, plans, reports and receipts, tables and row counts,
  who asked, policies, connections and agents.

  It can be run again: a mount that is locked stays so, and what is left is waited
  for. Somebody else lifts it, with dbops unlock.

      $ dbops lockdown -reason="stolen laptop, case 17"
      $ dbops lockdown -show` + optionsHelp(l.flags())
}

// Run does it.
func (l *lockdownCommand) Run(args []string) int {
	if err := l.run(args); err != nil {
		return l.console.fail("lockdown", l.vault, err)
	}
	return 0
}

func (l *lockdownCommand) run(args []string) error {
	if _, err := parse(l.flags(), args); err != nil {
		return err
	}
	now := time.Now()
	since, err := parseSince(l.since, now)
	switch {
	case err != nil:
		return err
	case l.reason == "" && !l.show:
		return usageError("-reason is missing: say why, for those who come later")
	case l.show && (l.reason != "" || l.rotate):
		return usageError("-show excludes -reason and -rotate")
	case l.timeout <= 0:
		return usageError("-timeout is %s; it must be above zero", l.timeout)
	}
	if l.out == "" {
		l.out = "dbops-lockdown-" + now.UTC().Format("20060102T150405Z")
	}
	client, err := l.console.dial(l.vault)
	if err != nil {
		return err
	}
	ctx, stop := l.console.interruptible()
	defer stop()
	responder := vault.NewResponder(client)
	if l.show {
		state, err := responder.State(ctx)
		if err != nil {
			return err
		}
		l.console.showLockdown(l.vault.format, state)
		return nil
	}
	return l.respond(ctx, responder, since)
}

// parseSince reads a time, or a duration before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usageError("-since is %q; it must be a duration such as 24h or a time such as 2026-01-31T12:00:00Z", text)
	}
	return at, nil
}

// respond goes through all steps, whatever one of them fails with: evidence is
// written even if something could not be ended.
func (l *lockdownCommand) respond(ctx context.Context, responder *vault.Responder, since time.Time) error {
	state, err := responder.Lock(ctx, l.reason, l.rotate)
	if err != nil {
		return err
	}
	l.say("locked", fmt.Sprintf("Locked down since %s by %s.", state.At.Local().Format(time.DateTime), state.By))
	waitErr := l.await(ctx, responder)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	revokeErr := responder.RevokeLeases(ctx)
	if revokeErr == nil {
		var leases int
		if leases, revokeErr = responder.Leases(ctx); revokeErr == nil && leases > 0 {
			revokeErr = &wire.Error{Code: wire.CodeCleanup, Reason: fmt.Sprintf("%d leases of the mount are left", leases), Hint: "run the command again"}
		}
	}
	if revokeErr == nil {
		l.say("revoked", "No lease of the mount is left.")
	}
	if waitErr == nil && revokeErr == nil {
		waitErr = l.await(ctx, responder) // what the leases' revocation has looked for again
	}
	evidence := &evidence{responder: responder, dir: l.out, since: since}
	evidenceErr := evidence.write(ctx)
	if evidenceErr == nil {
		l.say("evidence", fmt.Sprintf("Wrote %d files about %d operations since %s to %s.", evidence.files, evidence.operations, since.Local().Format(time.DateTime), l.out))
	}
	if err := errors.Join(waitErr, revokeErr, evidenceErr); err != nil {
		l.say("incomplete", "The mount stays locked, but not all could be done: run the command again.")
		for _, each := range []error{waitErr, revokeErr, evidenceErr} {
			if each != nil {
				return each
			}
		}
	}
	return nil
}

// lookEvery is between two looks at what is left.
const lookEvery = 500 * time.Millisecond

// await waits until nothing is left and says what changes meanwhile.
func (l *lockdownCommand) await(ctx context.Context, responder *vault.Responder) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	deadline := time.Now().Add(l.timeout)
	said := ""
	for {
		state, err := responder.State(ctx)
		if err != nil {
			if code := vault.CodeOf(err); ctx.Err() != nil || code != wire.CodeUnavailable || time.Now().After(deadline) {
				return err
			}
		} else {
			left := vault.LeftText(state.Left)
			switch {
			case !state.Locked:
				return &wire.Error{Code: wire.CodeConflict, Reason: "somebody has lifted the lockdown meanwhile"}
			case state.Done:
				if said != "" {
					l.say("ended", "Nothing is left.")
				}
				return nil
			case time.Now().After(deadline):
				return &wire.Error{
					Code: wire.CodeCleanup, Reason: fmt.Sprintf("after %s there are left: %s", l.timeout, left),
					Hint: "the plugin goes on trying; run the command again to wait for it",
				}
			case left != said:
				l.say("left", "Left: "+left+".")
				said = left
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// lockdownLine is a step of the command in JSON.
type lockdownLine struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

func (l *lockdownCommand) say(kind, text string) {
	if l.vault.format == formatJSON {
		l.console.printJSON(lockdownLine{Type: kind, Text: text})
		return
	}
	fmt.Fprintln(l.console.stdout, plain(text))
}

// showLockdown prints the state for people or programs.
func (c *console) showLockdown(format string, state wire.Lockdown) {
	if format == formatJSON {
		c.printJSON(state)
		return
	}
	if !state.Locked {
		fmt.Fprintln(c.stdout, "Not locked down.")
		return
	}
	fmt.Fprintf(c.stdout, "Locked down since %s by %s: %s\n", state.At.Local().Format(time.DateTime), plain(fmt.Sprint(state.By)), plain(state.Reason))
	if !state.BreakGlassAt.IsZero() {
		fmt.Fprintf(c.stdout, "Who locked it may lift it alone from %s.\n", state.BreakGlassAt.Local().Format(time.DateTime))
	}
	left := "nothing"
	if text := vault.LeftText(state.Left); text != "" {
		left = plain(text)
	}
	fmt.Fprintf(c.stdout, "Left: %s.\n", left)
}
