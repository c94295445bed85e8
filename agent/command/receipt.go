package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/wait"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// receiptCommand fetches the receipt of an operation.
type receiptCommand struct {
	console *console
	vault   vaultFlags
	all     bool
	out     string
	wait    time.Duration
}

var _ cli.Command = (*receiptCommand)(nil)

func (r *receiptCommand) flags() *flag.FlagSet {
	set := newFlags("receipt")
	r.vault.register(set)
	registerAll(set, &r.all)
	set.StringVar(&r.out, "out", "", "`File` to write it to, instead of the output.")
	set.DurationVar(&r.wait, "wait", 10*time.Second, "`Time` to wait for the receipt of an operation that has just ended.")
	return set
}

// Synopsis is the line in dbops -help.
func (*receiptCommand) Synopsis() string { return "Fetch the signed receipt of an operation" }

// Help is the whole help.
func (r *receiptCommand) Help() string {
	return `Usage: dbops receipt [options] <id>

  Fetches the receipt of an operation that has ended: a DSSE envelope with an
  in-toto statement, signed by Vault's plugin. It is made when the accounts of the
  operation are gone and nothing has to be cleaned up any more.

      $ dbops receipt op-01kaysfqcv4d5nvsxgtv1fbkgs -out=receipt.json
      $ vault read -field=pem dbops/keys > keys.pem
      $ dbops receipt verify receipt.json -keys=keys.pem` + optionsHelp(r.flags())
}

// Run fetches it.
func (r *receiptCommand) Run(args []string) int {
	if err := r.fetch(args); err != nil {
		return r.console.fail("receipt", r.vault, err)
	}
	return 0
}

func (r *receiptCommand) fetch(args []string) error {
	client, id, err := r.console.dialAbout(r.flags(), &r.vault, args, nil)
	if err != nil {
		return err
	}
	requester := among(client, r.all)
	ctx, stop := r.console.interruptible()
	defer stop()
	text, err := awaitReceipt(ctx, requester, id, r.wait)
	if err != nil {
		return err
	}
	if r.out == "" {
		fmt.Fprintln(r.console.stdout, text)
		return nil
	}
	if err := renameio.WriteFile(r.out, []byte(text+"\n"), 0o644, renameio.WithTempDir(filepath.Dir(r.out))); err != nil {
		return usageError("write receipt: %v", err)
	}
	return nil
}

// receiptPause is between looks for a receipt that is not there yet.
const receiptPause = 500 * time.Millisecond

// awaitReceipt reads the receipt, for a while again as long as it is only not made
// yet.
func awaitReceipt(ctx context.Context, requester *vault.Requester, id string, patience time.Duration) (string, error) {
	end := time.Now().Add(patience)
	for {
		text, err := requester.Receipt(ctx, id)
		if vault.CodeOf(err) != wire.CodeCleanup || time.Now().After(end) {
			return text, err
		}
		if !wait.For(ctx, receiptPause) {
			return "", ctx.Err()
		}
	}
}

// readFile reads a file named on the command line.
func readFile(what, path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError("read %s: %v", what, err)
	}
	return content, nil
}
