package command

import (
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// operationsCommand lists operations.
type operationsCommand struct {
	console *console
	vault   vaultFlags
	filter  vault.Filter
	state   string
	all     bool
}

var _ cli.Command = (*operationsCommand)(nil)

func (o *operationsCommand) flags() *flag.FlagSet {
	set := newFlags("operations")
	o.vault.register(set)
	set.StringVar(&o.state, "state", "", "`State` to list only, e.g. running or failed.")
	set.BoolVar(&o.filter.Waiting, "waiting", false, "Only those that wait for your approval.")
	set.IntVar(&o.filter.Limit, "limit", 50, "`Number` of operations at most, up to 1000.")
	set.BoolVar(&o.all, "all", false, "Everybody's; needs the ACL policy of an operator or auditor.")
	return set
}

// Synopsis is the line in dbops -help.
func (*operationsCommand) Synopsis() string { return "List operations" }

// Help is the whole help.
func (o *operationsCommand) Help() string {
	return `Usage: dbops operations [options]

  Lists your operations, and those that you may approve, the newest first. With
  -format=json an object is printed: operations, and in more whether there are
  older ones than -limit let through.

      $ dbops operations -state=running
      $ dbops operations -waiting` + optionsHelp(o.flags())
}

// Run lists them.
func (o *operationsCommand) Run(args []string) int {
	operations, more, err := o.list(args)
	if err != nil {
		return o.console.fail("operations", o.vault, err)
	}
	if o.vault.format == formatJSON {
		if operations == nil {
			operations = []wire.Operation{}
		}
		o.console.printJSON(shownOperations{Operations: operations, More: more})
		return 0
	}
	if len(operations) == 0 {
		fmt.Fprintln(o.console.stdout, "No operations.")
		return 0
	}
	table := tabwriter.NewWriter(o.console.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tSOURCE\tTARGET\tSTATE\tREQUESTER\tAGENT\tCREATED")
	for _, op := range operations {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", op.ID, op.Source, op.Target, listedState(op),
			plain(op.Requester.Name), dash(op.Agent), op.CreatedAt.Local().Format(time.DateTime))
	}
	if err := table.Flush(); err != nil {
		return o.console.fail("operations", o.vault, err)
	}
	if more {
		fmt.Fprintf(o.console.stdout, "There are more; see -limit.\n")
	}
	return 0
}

func (o *operationsCommand) list(args []string) (operations []wire.Operation, more bool, err error) {
	if _, err := parse(o.flags(), args); err != nil {
		return nil, false, err
	}
	o.filter.State = wire.State(o.state)
	if o.state != "" && !o.filter.State.Valid() {
		return nil, false, usageError("-state is %q; it must be one of %v", o.state, wire.States())
	}
	if o.filter.Limit < 1 || o.filter.Limit > 1000 {
		return nil, false, usageError("-limit is %d; it must be 1 to 1000", o.filter.Limit)
	}
	client, err := o.console.dial(o.vault)
	if err != nil {
		return nil, false, err
	}
	ctx, stop := o.console.interruptible()
	defer stop()
	return among(client, o.all).Operations(ctx, o.filter)
}

// shownOperations is the JSON form of dbops operations, as Vault answers it.
type shownOperations struct {
	Operations []wire.Operation `json:"operations"`
	More       bool             `json:"more"` // there are older ones than -limit let through
}

// listedState is the state of an operation in a list, and what its target still needs.
func listedState(op wire.Operation) string {
	state := stateText(op)
	if op.Cleanup == wire.CleanupPending || op.Cleanup == wire.CleanupFailed {
		state += ", cleanup " + string(op.Cleanup)
	}
	return state
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
