package command

import (
	"flag"
	"strconv"
	"time"

	"github.com/hashicorp/cli"
	"github.com/oklog/ulid/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// cloneCommand asks for a clone and follows it.
type cloneCommand struct {
	console           *console
	vault             vaultFlags
	request           vault.Request
	owner, acl        string
	jobs              int
	replace           bool
	detach            bool
	cancelOnInterrupt bool
}

var _ cli.Command = (*cloneCommand)(nil)

func (c *cloneCommand) flags() *flag.FlagSet {
	set := newFlags("clone")
	c.vault.register(set)
	set.StringVar(&c.request.Source, "source", "", "`Connection` to copy from.")
	set.StringVar(&c.request.Target, "target", "", "`Connection` whose database is replaced by the copy.")
	set.StringVar(&c.owner, wire.OptionOwner, "stable", "`Who` owns the copy: stable, the role behind the target's write purpose, or source,\nthe same names as at the source.")
	set.StringVar(&c.acl, wire.OptionACL, "drop", "`What` happens to grants: drop or keep.")
	set.IntVar(&c.jobs, wire.OptionJobs, 2, "`Number` of tables copied at once, 1 to 16.")
	set.BoolVar(&c.replace, wire.OptionReplace, true, "Replace a target database that exists; with -replace=false that is an error.")
	set.StringVar(&c.request.Reason, "reason", "", "`Text` that stands with the operation, e.g. a ticket.")
	set.StringVar(&c.request.RequestID, "request-id", "", "`ID` of this request, new by default: the same one again is answered with the same\noperation.")
	set.BoolVar(&c.detach, "detach", false, "Ask and leave; do not wait for the end.")
	set.BoolVar(&c.cancelOnInterrupt, "cancel-on-interrupt", false, "Cancel the operation on the first Ctrl-C instead of leaving it running.")
	return set
}

// Synopsis is the line in dbops -help.
func (*cloneCommand) Synopsis() string { return "Clone one database over another" }

// Help is the whole help.
func (c *cloneCommand) Help() string {
	return `Usage: dbops clone [options] -source=<connection> -target=<connection>

  Asks for a clone, shows the decision and follows the operation to its end:
  with a progress bar on a terminal, else with one JSON object a line. The copy
  is verified before it takes the place of the target database; when anything
  fails, the target stays as it was.

      $ dbops clone -source=prod -target=staging -reason="refresh for ticket 4711"

  Ctrl-C leaves the operation running, a second one within three seconds
  cancels it. The exit code tells how it ended: 0 done and verified, 10 refused
  by policy, 12 the copy differed, 13 failed, 16 cancelled, 130 interrupted;
  the README has the whole table.` + optionsHelp(c.flags())
}

// Run asks and follows.
func (c *cloneCommand) Run(args []string) int {
	if err := c.parse(args); err != nil {
		return c.console.fail("clone", c.vault, err)
	}
	client, err := c.console.dial(c.vault)
	if err != nil {
		return c.console.fail("clone", c.vault, err)
	}
	requester := vault.NewRequester(client)
	ctx, stop := c.console.interruptible()
	op, err := askPatiently(ctx, requester, c.request)
	stop()
	if err != nil {
		return c.console.fail("clone", c.vault, err)
	}
	if c.detach {
		return c.console.show(c.vault, op, nil)
	}
	code, err := c.console.follow(requester, op, c.vault, c.cancelOnInterrupt)
	if err != nil {
		return c.console.fail("clone", c.vault, err)
	}
	return code
}

// parse reads and checks the options and fills in the request.
func (c *cloneCommand) parse(args []string) error {
	set := c.flags()
	if _, err := parse(set, args); err != nil {
		return err
	}
	for _, required := range []struct{ name, value string }{{"source", c.request.Source}, {"target", c.request.Target}} {
		if required.value == "" {
			return usageError("-%s is missing", required.name)
		}
		if !connectionName.MatchString(required.value) {
			return usageError("-%s is %q, which is no connection's name", required.name, required.value)
		}
	}
	c.request.Kind, c.request.Options = wire.KindClone, map[string]string{}
	set.Visit(func(f *flag.Flag) {
		switch f.Name {
		case wire.OptionOwner, wire.OptionACL, wire.OptionJobs, wire.OptionReplace:
			c.request.Options[f.Name] = f.Value.String()
		}
	})
	switch c.owner {
	case "stable", "source":
	default:
		return usageError("-owner is %q; it must be stable or source", c.owner)
	}
	switch c.acl {
	case "drop", "keep":
	default:
		return usageError("-acl is %q; it must be drop or keep", c.acl)
	}
	if c.jobs < 1 || c.jobs > 16 {
		return usageError("-jobs is %s; it must be 1 to 16", strconv.Itoa(c.jobs))
	}
	if c.request.RequestID == "" {
		c.request.RequestID = ulid.Make().String()
	}
	return nil
}

// follow shows op until it ends, in the form that fits where output goes.
func (c *console) follow(requester *vault.Requester, op wire.Operation, at vaultFlags, cancelOnInterrupt bool) (int, error) {
	var view followView = &jsonView{console: c, now: time.Now}
	if c.terminal && at.format == formatTable {
		view = newBarView(c.stdout, at, time.Now)
	}
	f := follower{reader: requester, view: view, signals: c.signals, options: at.options(), cancelOnInterrupt: cancelOnInterrupt}
	return f.follow(op)
}
