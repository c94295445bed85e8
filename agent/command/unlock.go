package command

import (
	"flag"
	"fmt"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
)

// unlockCommand lifts a lockdown.
type unlockCommand struct {
	console *console
	vault   vaultFlags
	reason  string
	leave   string
}

var _ cli.Command = (*unlockCommand)(nil)

func (u *unlockCommand) flags() *flag.FlagSet {
	set := newFlags("unlock")
	u.vault.register(set)
	set.StringVar(&u.reason, "reason", "", "`Text` that says why it is over.")
	set.StringVar(&u.leave, "leave", "", "`Names`, separated by commas, of connections and static roles that are gone for good.")
	return set
}

// Synopsis is the line in dbops -help.
func (*unlockCommand) Synopsis() string { return "Lift a lockdown that somebody else began" }

// Help is the whole help.
func (u *unlockCommand) Help() string {
	return `Usage: dbops unlock [options]

  Lifts a lockdown. Who began it cannot, nor can a token without an entity, such
  as a root token; and nothing may be left to be ended (dbops lockdown -show).

      $ dbops unlock -reason="case 17 is closed"` + optionsHelp(u.flags())
}

// Run lifts it.
func (u *unlockCommand) Run(args []string) int {
	if err := u.run(args); err != nil {
		return u.console.fail("unlock", u.vault, err)
	}
	return 0
}

func (u *unlockCommand) run(args []string) error {
	if _, err := parse(u.flags(), args); err != nil {
		return err
	}
	if u.reason == "" {
		return usageError("-reason is missing: say why it is over")
	}
	var leave []string
	if u.leave != "" {
		leave = strings.Split(u.leave, ",")
	}
	client, err := u.console.dial(u.vault)
	if err != nil {
		return err
	}
	ctx, stop := u.console.interruptible()
	defer stop()
	state, err := vault.NewResponder(client).Unlock(ctx, u.reason, leave)
	if err != nil {
		return err
	}
	if u.vault.format == formatJSON {
		u.console.printJSON(state)
		return nil
	}
	fmt.Fprintln(u.console.stdout, "The lockdown is lifted.")
	return nil
}
