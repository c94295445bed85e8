package command

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/cli"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// setupCommand does to a Vault what its operator would do by hand.
type setupCommand struct {
	console      *console
	vault        vaultFlags
	setup        vault.Setup
	pluginPath   string
	labels       string
	boundCIDRs   string
	toolsImage   string
	agentCACert  string
	keepToken    bool
	out          string
	newSecretID  bool
	dryRun       bool
	showCommands bool
}

var _ cli.Command = (*setupCommand)(nil)

func (s *setupCommand) flags() *flag.FlagSet {
	set := newFlags("setup")
	s.vault.register(set)
	set.StringVar(&s.pluginPath, "plugin-path", "", "`File` of the plugin, in Vault's plugin directory: registered by its sha256.")
	set.StringVar(&s.setup.PluginSHA256, "sha256", "", "`Digest` of the plugin, if the file is not at hand; with -command.")
	set.StringVar(&s.setup.PluginCommand, "command", "", "`Name` of the file in Vault's plugin directory. Default: that of -plugin-path.")
	set.StringVar(&s.setup.PluginName, "plugin-name", vault.PluginName, "`Name` in Vault's plugin catalog.")
	set.StringVar(&s.setup.PluginVersion, "plugin-version", "", "`Version` to register as and to run, e.g. v0.1.0.")
	set.StringVar(&s.setup.AuditFile, "enable-audit-file", "", "`Path` on the Vault server of a file audit device to enable if there is none.")
	set.StringVar(&s.setup.AppRolePath, "approle-path", "approle", "`Path` of the auth method agents log in with; enabled if absent.")
	set.StringVar(&s.setup.Agent.Name, "agent", "", "`Name` of an agent to make an identity for: a-z, 0-9 and -.")
	set.StringVar(&s.labels, "agent-labels", "", "`Labels` of the agent, as key=value,…")
	set.DurationVar(&s.setup.Agent.TokenPeriod, "agent-token-period", time.Hour, "`Duration` within which the agent must renew its token.")
	set.StringVar(&s.boundCIDRs, "agent-cidrs", "", "`Networks`, separated by commas, the agent may come from.")
	set.StringVar(&s.toolsImage, "tools-image", "postgres:17", "`Image` with PostgreSQL's client tools, not older than the servers, for agent.hcl.")
	set.StringVar(&s.agentCACert, "agent-ca-cert", "", "`File` on the agent's host with Vault's certificate authority, for agent.hcl.")
	set.BoolVar(&s.keepToken, "agent-keep-token", true, "Let the agent keep its token in run_dir, which must be in memory, across restarts.")
	set.DurationVar(&s.setup.Agent.WrapTTL, "wrap-ttl", time.Hour, "`Duration` in which the agent must pick up its secret-id.")
	set.StringVar(&s.out, "out", ".", "`Directory` for role-id and wrapped secret-id of the agent.")
	set.BoolVar(&s.newSecretID, "new-secret-id", false, "Make a new wrapped secret-id for an agent that had one, e.g. after it lost its token.")
	set.BoolVar(&s.showCommands, "show-commands", false, "Show with each step the vault command that does the same.")
	set.BoolVar(&s.dryRun, "dry-run", false, "Only show what would be done.")
	return set
}

// Synopsis is the line in dbops -help.
func (*setupCommand) Synopsis() string { return "Prepare a Vault for dbops, or an agent's identity" }

// Help is the whole help.
func (s *setupCommand) Help() string {
	return `Usage: dbops setup [options]

  Registers and mounts the plugin, tunes the mount so that audit devices show
  what they must, writes one ACL policy for each duty and, with -agent, makes an
  agent's identity: an AppRole, its record in dbops, and two files for its host.
  What is already right is left alone, so it can be run again.

      $ dbops setup -plugin-path=/etc/vault/plugins/vault-plugin-secrets-dbops
      $ dbops setup -agent=db1 -agent-cidrs=10.0.0.7/32 -out=/etc/dbops

  The token needs an operator's rights on sys/ and auth/; see -dry-run with
  -show-commands for each step.` + optionsHelp(s.flags())
}

// Run does it.
func (s *setupCommand) Run(args []string) int {
	if err := s.run(args); err != nil {
		return s.console.fail("setup", s.vault, err)
	}
	return 0
}

func (s *setupCommand) run(args []string) error {
	if _, err := parse(s.flags(), args); err != nil {
		return err
	}
	if err := s.complete(); err != nil {
		return err
	}
	client, err := s.console.dial(s.vault)
	if err != nil {
		return err
	}
	ctx, stop := s.console.interruptible()
	defer stop()
	return s.apply(ctx, client)
}

// complete checks the options and derives what they imply.
func (s *setupCommand) complete() error {
	if err := checkFormat(s.vault.format); err != nil {
		return err
	}
	switch {
	case s.pluginPath != "" && s.setup.PluginSHA256 != "":
		return usageError("-plugin-path and -sha256 exclude each other")
	case s.setup.PluginSHA256 != "" && s.setup.PluginCommand == "":
		return usageError("-sha256 needs -command, the file's name in Vault's plugin directory")
	case s.setup.PluginCommand != "" && s.pluginPath == "" && s.setup.PluginSHA256 == "":
		return usageError("-command needs -plugin-path or -sha256")
	case s.setup.Agent.Name != "" && !wire.ValidAgentName(s.setup.Agent.Name):
		return usageError("-agent is %q; an agent's name is %s", s.setup.Agent.Name, wire.AgentNamePattern)
	case s.setup.Agent.TokenPeriod < time.Minute:
		return usageError("-agent-token-period is %s; it must be a minute or more", s.setup.Agent.TokenPeriod)
	case s.setup.Agent.WrapTTL < time.Minute:
		return usageError("-wrap-ttl is %s; it must be a minute or more", s.setup.Agent.WrapTTL)
	}
	s.setup.AppRolePath = strings.Trim(s.setup.AppRolePath, "/")
	if s.pluginPath != "" {
		sum, err := fileSHA256(s.pluginPath)
		if err != nil {
			return &wire.Error{Code: wire.CodeConfig, Reason: fmt.Sprintf("read plugin: %v", err)}
		}
		s.setup.PluginSHA256 = sum
		if s.setup.PluginCommand == "" {
			s.setup.PluginCommand = filepath.Base(s.pluginPath)
		}
	}
	if digest, err := hex.DecodeString(s.setup.PluginSHA256); err != nil || len(digest) != 0 && len(digest) != sha256.Size {
		return usageError("-sha256 is %q; it must be 64 hex digits", s.setup.PluginSHA256)
	}
	for _, cidr := range strings.Split(s.boundCIDRs, ",") {
		if cidr != "" {
			s.setup.Agent.BoundCIDRs = append(s.setup.Agent.BoundCIDRs, strings.TrimSpace(cidr))
		}
	}
	for _, label := range strings.Split(s.labels, ",") {
		if label == "" {
			continue
		}
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			return usageError("-agent-labels: %q is not key=value", label)
		}
		if s.setup.Agent.Labels == nil {
			s.setup.Agent.Labels = map[string]string{}
		}
		s.setup.Agent.Labels[key] = value
	}
	return nil
}

func (s *setupCommand) apply(ctx context.Context, client *vault.Client) error {
	files := agentFiles{dir: s.out, agent: s.setup.Agent.Name}
	if s.setup.Agent.Name != "" {
		// The agent removes the secret-id once it has used it; the role-id stays, so
		// that file tells a first run from a repeated one.
		if _, err := os.Stat(files.roleID()); errors.Is(err, fs.ErrNotExist) || s.newSecretID {
			s.setup.Agent.NewSecretID = true
		}
	}
	var actions []vault.Action
	operator := vault.NewOperator(client, s.dryRun, func(a vault.Action) {
		actions = append(actions, a)
		if s.vault.format == formatTable {
			s.print(a)
		}
	})
	result, err := operator.Apply(ctx, s.setup)
	if err != nil {
		return err
	}
	hcl := ""
	if s.setup.Agent.Name != "" {
		if !s.dryRun {
			if err := files.write(result); err != nil {
				return err
			}
		}
		if hcl, err = agentHCL(client, s, files); err != nil {
			return err
		}
	}
	if s.vault.format == formatJSON {
		s.console.printJSON(map[string]any{"type": "setup", "dry_run": s.dryRun, "actions": actions, "agent_hcl": hcl})
		return nil
	}
	if hcl != "" {
		fmt.Fprintf(s.console.stdout, "\n# agent.hcl for the host of %s\n%s", s.setup.Agent.Name, hcl)
	}
	return nil
}

// print shows one step.
func (s *setupCommand) print(a vault.Action) {
	verb := string(a.Verb)
	if s.dryRun && (a.Verb == vault.VerbCreate || a.Verb == vault.VerbUpdate) {
		verb = "would " + verb
	}
	line := fmt.Sprintf("%-12s %s", verb, a.Object)
	if a.Detail != "" {
		line += ": " + a.Detail
	}
	fmt.Fprintln(s.console.stdout, line)
	if a.Command != "" && (s.showCommands || a.Verb == vault.VerbWarn) {
		fmt.Fprintf(s.console.stdout, "%-12s $ %s\n", "", a.Command)
	}
}

func fileSHA256(path string) (sum string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// agentFiles are what an agent's host gets.
type agentFiles struct{ dir, agent string }

func (f agentFiles) roleID() string   { return filepath.Join(f.dir, f.agent+".role-id") }
func (f agentFiles) secretID() string { return filepath.Join(f.dir, f.agent+".wrapped-secret-id") }

// write puts both in place, readable by their owner only.
func (f agentFiles) write(result vault.SetupResult) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make directory for the agent's files: %w", err)
	}
	if err := renameio.WriteFile(f.roleID(), []byte(result.RoleID+"\n"), 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write role-id: %w", err)
	}
	if result.WrappingToken.Empty() {
		return nil
	}
	if err := renameio.WriteFile(f.secretID(), []byte(result.WrappingToken.Reveal()+"\n"), 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write wrapped secret-id: %w", err)
	}
	return nil
}
