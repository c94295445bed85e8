package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/auditlog"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// auditFiles are the options of commands that read audit files.
type auditFiles struct {
	console  *console
	vault    vaultFlags
	chains   string
	offline  bool
	accessor string
	json     bool
}

func (a *auditFiles) register(set *flag.FlagSet) {
	a.vault.register(set)
	set.BoolVar(&a.json, "json", false, "The same as -format=json.")
	set.StringVar(&a.chains, "chains", "", "`File` with the ends of chains, as dbops audit chains -json prints them;\nVault is not asked then.")
	set.BoolVar(&a.offline, "offline", false, "Hold the files against nothing but themselves: a cut end is not seen, and\nwhich entity an agent is, is taken from its first event.")
	set.StringVar(&a.accessor, "accessor", "", "`Accessor` of our mount, with -offline.")
}

const auditFilesHelp = `
  Files are those of Vault's file audit devices: rotated ones, compressed with gzip
  or not, those of several nodes and of several devices, in any order; "-" is
  standard input. What they are held against is read from Vault, with the ACL
  policy of an auditor, or from a file.
`

// read parses the command line and returns the anchors and the inputs.
func (a *auditFiles) read(ctx context.Context, set *flag.FlagSet, args []string) (auditlog.Anchors, []auditlog.Input, error) {
	words, err := parseAny(set, args)
	if err != nil {
		return auditlog.Anchors{}, nil, err
	}
	if a.json {
		a.vault.format = formatJSON
	}
	if err := checkFormat(a.vault.format); err != nil {
		return auditlog.Anchors{}, nil, err
	}
	switch {
	case len(words) == 0:
		return auditlog.Anchors{}, nil, usageError("<file> is missing")
	case a.offline && a.chains != "":
		return auditlog.Anchors{}, nil, usageError("-offline and -chains exclude each other")
	case a.accessor != "" && !a.offline:
		return auditlog.Anchors{}, nil, usageError("-accessor goes with -offline; else Vault or the file of -chains says it")
	}
	// Before the files: what is written while they are read is then no contradiction.
	anchors, err := a.anchors(ctx)
	if err != nil {
		return auditlog.Anchors{}, nil, err
	}
	inputs := make([]auditlog.Input, 0, len(words))
	for _, word := range words {
		inputs = append(inputs, auditlog.File(word, os.Stdin))
	}
	return anchors, inputs, nil
}

func (a *auditFiles) anchors(ctx context.Context) (auditlog.Anchors, error) {
	switch {
	case a.offline:
		return auditlog.Anchors{MountAccessor: a.accessor}, nil
	case a.chains != "":
		return savedChains(a.chains)
	}
	client, err := a.console.dial(a.vault)
	if err != nil {
		return auditlog.Anchors{}, err
	}
	return vault.NewRequester(client).Chains(ctx)
}

func savedChains(path string) (auditlog.Anchors, error) {
	var chains auditlog.Anchors
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &chains)
	}
	if err == nil && (chains.MountAccessor == "" || chains.Agents == nil) {
		err = errors.New("it holds no ends of chains")
	}
	if err != nil {
		return auditlog.Anchors{}, &wire.Error{Code: wire.CodeConfig, Reason: fmt.Sprintf("read %s: %v", path, err), Hint: "write it with: dbops audit chains -json"}
	}
	return chains, nil
}
