package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// VaultOptions says what kind of Vault to start. The zero value is one server in
// memory with our plugin mounted at dbops/ and a file audit device.
type VaultOptions struct {
	// Raft stores on disk, so that Kill and Restart lose nothing.
	Raft bool
	// Nodes, if above 1, makes a Raft cluster of so many servers.
	Nodes int
	// TLS has the servers listen with a certificate for 127.0.0.1 and localhost,
	// signed by an authority of its own (CAFile).
	TLS bool
	// SkipPlugin neither registers nor mounts the plugin; its binary still lies
	// in the plugin directory, unless there is none to be built.
	SkipPlugin bool
	// PluginBinary is used instead of the one built from this tree.
	PluginBinary string
	// Mount is the path of our mount; the default is "dbops".
	Mount string
	// NonHMACRequestKeys and NonHMACResponseKeys are the keys our mount shows in
	// clear in audit devices; the defaults are wire's.
	NonHMACRequestKeys, NonHMACResponseKeys []string
	// SkipAudit enables no audit device.
	SkipAudit bool
	// LogLevel is Vault's; the default is "info".
	LogLevel string
	// Config is further text for the configuration file of each server.
	Config string
}

// VaultServer is a running Vault, unsealed: one server or a cluster.
type VaultServer struct {
	// Nodes are the servers; a Vault that is no cluster has one.
	Nodes []*VaultNode
	// Client talks to the first node with the root token. A standby forwards.
	Client *api.Client
	// Address is the URL of the first node.
	Address string
	// RootToken and UnsealKey are this Vault's.
	RootToken, UnsealKey string
	// CAFile holds the authority of the servers' certificate, PEM; "" without TLS.
	CAFile string
	// Mount is the path of our mount, without slash.
	Mount string
	// PluginDir holds the plugin binaries, for all nodes.
	PluginDir string

	t         TB
	dir       string
	auditFile string
}

// VaultNode is one server.
type VaultNode struct {
	// Name is its name in the cluster, "node1" and on.
	Name string
	// Address is its URL.
	Address string
	// Client talks to this node with the root token.
	Client *api.Client

	vault   *VaultServer
	binary  string
	config  string
	log     string
	process *process
}

// Vault starts a Vault, initialized and unsealed, on loopback. It ends, with its
// plugin processes and its files, when the test ends.
func Vault(t TB, opts VaultOptions) *VaultServer {
	t.Helper()
	Require(t, PartVault)
	binary, err := locate(PartVault)
	if err != nil {
		t.Fatalf("start vault: %v", err)
	}
	dir, err := runDir("vault")
	if err != nil {
		t.Fatalf("start vault: %v", err)
	}
	v := &VaultServer{t: t, dir: dir, Mount: opts.Mount, PluginDir: filepath.Join(dir, "plugins")}
	if v.Mount == "" {
		v.Mount = "dbops"
	}
	t.Cleanup(v.remove)
	if err := os.Mkdir(v.PluginDir, 0o700); err != nil {
		t.Fatalf("start vault: %v", err)
	}

	if opts.TLS {
		if err := v.makeCertificate(); err != nil {
			t.Fatalf("start vault: %v", err)
		}
	}

	nodes := max(opts.Nodes, 1)
	for i := range nodes {
		node, err := v.startNode(fmt.Sprintf("node%d", i+1), binary, opts)
		if err != nil {
			t.Fatalf("start vault: %v", err)
		}
		v.Nodes = append(v.Nodes, node)
		if i == 0 {
			v.Client, v.Address = node.Client, node.Address
			if err = v.initialize(); err == nil && nodes > 1 {
				err = v.hurryAutopilot()
			}
		} else {
			err = v.join(node)
		}
		if err != nil {
			t.Fatalf("start vault: %v\n%s", err, lastLines(node.Log(), 20))
		}
	}
	if nodes > 1 {
		v.awaitVoters(nodes)
	}

	if !opts.SkipAudit {
		v.auditFile = filepath.Join(dir, "audit.log")
		err := v.Client.Sys().EnableAuditWithOptions("file", &api.EnableAuditOptions{
			Type: "file", Options: map[string]string{"file_path": v.auditFile},
		})
		if err != nil {
			t.Fatalf("enable audit device: %v", err)
		}
	}
	if !opts.SkipPlugin {
		path := opts.PluginBinary
		if path == "" {
			path = Plugin(t)
		}
		v.RegisterPlugin(path, "")
		request, response := opts.NonHMACRequestKeys, opts.NonHMACResponseKeys
		if request == nil {
			request = wire.AuditNonHMACRequestKeys()
		}
		if response == nil {
			response = wire.AuditNonHMACResponseKeys()
		}
		v.MountPlugin(v.Mount, request, response)
	}
	return v
}

// makeCertificate writes what the servers' listeners and their clients need.
func (v *VaultServer) makeCertificate() error {
	certificate, err := NewCertificate("127.0.0.1", "localhost")
	if err != nil {
		return err
	}
	v.CAFile = filepath.Join(v.dir, "ca.pem")
	return errors.Join(
		os.WriteFile(v.CAFile, certificate.CA, 0o600),
		os.WriteFile(filepath.Join(v.dir, "server.crt"), certificate.Cert, 0o600),
		os.WriteFile(filepath.Join(v.dir, "server.key"), certificate.Key, 0o600),
	)
}

// startNode starts one server and waits until it answers. Ports someone took
// between being picked and being bound are replaced by others.
func (v *VaultServer) startNode(name, binary string, opts VaultOptions) (*VaultNode, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		node, err := v.tryNode(name, binary, opts)
		if err == nil {
			return node, nil
		}
		log := ""
		if node != nil {
			log = node.Log()
		}
		if attempt == attempts || !strings.Contains(log, "address already in use") {
			return nil, fmt.Errorf("%s: %w\n%s", name, err, lastLines(log, 20))
		}
	}
}

func (v *VaultServer) tryNode(name, binary string, opts VaultOptions) (*VaultNode, error) {
	home := filepath.Join(v.dir, name)
	if err := errors.Join(os.RemoveAll(home), os.MkdirAll(filepath.Join(home, "raft"), 0o700)); err != nil {
		return nil, err
	}
	port, err := freePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	clusterPort, err := freePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if opts.TLS {
		scheme = "https"
	}
	node := &VaultNode{
		Name: name, Address: scheme + "://127.0.0.1:" + strconv.Itoa(port), vault: v, binary: binary,
		config: filepath.Join(home, "vault.hcl"), log: filepath.Join(home, "vault.log"),
	}
	if err := os.WriteFile(node.config, []byte(v.configuration(node, port, clusterPort, home, opts)), 0o600); err != nil {
		return nil, err
	}
	if node.Client, err = newClient(node.Address, v.CAFile, v.RootToken); err != nil {
		return nil, err
	}
	if err := node.start(); err != nil {
		return node, err
	}
	return node, nil
}

func (v *VaultServer) configuration(node *VaultNode, port, clusterPort int, home string, opts VaultOptions) string {
	storage := `storage "inmem" {}`
	if opts.Raft || opts.Nodes > 1 {
		storage = fmt.Sprintf("storage \"raft\" {\n  path = %q\n  node_id = %q\n  performance_multiplier = 1\n"+
			"  autopilot_reconcile_interval = \"500ms\"\n  autopilot_update_interval = \"500ms\"\n}",
			filepath.Join(home, "raft"), node.Name)
	}
	level := opts.LogLevel
	if level == "" {
		level = "info"
	}
	tls := "tls_disable = true"
	if opts.TLS {
		tls = fmt.Sprintf("tls_cert_file = %q\n  tls_key_file = %q",
			filepath.Join(v.dir, "server.crt"), filepath.Join(v.dir, "server.key"))
	}
	return fmt.Sprintf(`%s
listener "tcp" {
  address         = "127.0.0.1:%d"
  cluster_address = "127.0.0.1:%d"
  %s
}
api_addr         = %q
cluster_addr     = "https://127.0.0.1:%d"
plugin_directory = %q
log_level        = %q
disable_mlock    = true
ui               = false
%s
`, storage, port, clusterPort, tls, node.Address, clusterPort, v.PluginDir, level, opts.Config)
}

// newClient is a client that is told everything, whatever VAULT_… the environment
// holds, and does not hide server errors behind retries.
func newClient(address, caFile, token string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("configure Vault client: %w", config.Error)
	}
	config.Address, config.AgentAddress = address, ""
	config.MaxRetries = 0
	config.Timeout = time.Minute
	if err := config.ConfigureTLS(&api.TLSConfig{CACert: caFile}); err != nil {
		return nil, fmt.Errorf("configure Vault client: %w", err)
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("make Vault client: %w", err)
	}
	if err := client.SetAddress(address); err != nil {
		return nil, fmt.Errorf("make Vault client: %w", err)
	}
	client.ClearNamespace()
	client.SetToken(token)
	return client, nil
}

// NewClient returns a client of the first node with another token, "" for none.
func (v *VaultServer) NewClient(token string) *api.Client {
	v.t.Helper()
	client, err := newClient(v.Address, v.CAFile, token)
	if err != nil {
		v.t.Fatalf("%v", err)
	}
	return client
}

// initialize makes the first node a Vault of its own, with one unseal key.
func (v *VaultServer) initialize() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := v.Client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	v.RootToken, v.UnsealKey = answer.RootToken, answer.KeysB64[0]
	v.Client.SetToken(v.RootToken)
	return v.Nodes[0].unseal(ctx)
}

// hurryAutopilot has nodes that join made voters after a second, not after ten.
func (v *VaultServer) hurryAutopilot() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := v.Client.Logical().WriteWithContext(ctx, "sys/storage/raft/autopilot/configuration",
		map[string]any{"server_stabilization_time": "1s"})
	if err != nil {
		return fmt.Errorf("configure autopilot: %w", err)
	}
	return nil
}

// join makes the node a member of the first one's cluster.
func (v *VaultServer) join(node *VaultNode) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := node.Client.Sys().RaftJoinWithContext(ctx, &api.RaftJoinRequest{
		LeaderAPIAddr: v.Address, LeaderCACert: v.caPEM(),
	})
	if err != nil {
		return fmt.Errorf("join cluster: %w", err)
	}
	return node.unseal(ctx)
}

// caPEM is the content of CAFile.
func (v *VaultServer) caPEM() string {
	if v.CAFile == "" {
		return ""
	}
	content, err := os.ReadFile(v.CAFile)
	if err != nil {
		v.t.Fatalf("read authority: %v", err)
	}
	return string(content)
}

// awaitVoters waits until the cluster counts on all its nodes: before, the loss
// of one may take the cluster with it.
func (v *VaultServer) awaitVoters(want int) {
	v.t.Helper()
	v.await("all nodes to be voters", func(ctx context.Context) error {
		secret, err := v.Client.Logical().ReadWithContext(ctx, "sys/storage/raft/configuration")
		if err != nil {
			return err
		}
		config, ok := secret.Data["config"].(map[string]any)
		if !ok {
			return fmt.Errorf("unexpected answer %v", secret.Data)
		}
		servers, ok := config["servers"].([]any)
		if !ok {
			return fmt.Errorf("unexpected answer %v", secret.Data)
		}
		voters := 0
		for _, s := range servers {
			if server, ok := s.(map[string]any); ok && server["voter"] == true {
				voters++
			}
		}
		if voters < want {
			return fmt.Errorf("%d of %d are", voters, want)
		}
		return nil
	})
}

// await repeats f until it answers nil, for at most a minute.
func (v *VaultServer) await(what string, f func(ctx context.Context) error) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := poll(ctx, f); err != nil {
		v.t.Fatalf("wait for %s: %v", what, err)
	}
}

// poll repeats f until it answers nil or ctx ends; then it returns f's last error.
func poll(ctx context.Context, f func(ctx context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// remove ends every process and removes every file of this Vault.
func (v *VaultServer) remove() {
	for _, node := range v.Nodes {
		if failed(v.t) {
			v.t.Logf("log of vault %s:\n%s", node.Name, lastLines(node.Log(), 60))
		}
		node.process.kill()
	}
	// A plugin outlives a Vault that was killed.
	killPrograms(v.dir)
	removeAll(v.t, v.dir)
}

// AuditFile is the path of the audit device's file, "" without one. The nodes of
// a cluster all append to it.
func (v *VaultServer) AuditFile() string { return v.auditFile }

// AuditEntries returns the entries of the audit file so far, one JSON object each.
func (v *VaultServer) AuditEntries() []json.RawMessage {
	v.t.Helper()
	content, err := os.ReadFile(v.auditFile)
	if err != nil {
		v.t.Fatalf("read audit file: %v", err)
	}
	var entries []json.RawMessage
	for line := range strings.Lines(string(content)) {
		// The last line may still be on its way.
		if strings.HasSuffix(line, "\n") {
			entries = append(entries, json.RawMessage(strings.TrimSpace(line)))
		}
	}
	return entries
}

// PluginFile is the path of a file beside the plugin's program, by which tests steer
// a build with faults: the program's path and the suffix.
func (v *VaultServer) PluginFile(suffix string) string {
	return filepath.Join(v.PluginDir, pluginName) + suffix
}

// RegisterPlugin copies the binary into the plugin directory and registers it by
// its checksum under our plugin's name, as the given version or, with "", as the
// one without.
func (v *VaultServer) RegisterPlugin(binary, version string) {
	v.t.Helper()
	command := pluginName
	if version != "" {
		command += "-" + version
	}
	sum, err := copyProgram(filepath.Join(v.PluginDir, command), binary)
	if err != nil {
		v.t.Fatalf("register plugin: %v", err)
	}
	err = v.Client.Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name: pluginName, Type: api.PluginTypeSecrets, Command: command, SHA256: sum, Version: version,
	})
	if err != nil {
		v.t.Fatalf("register plugin: %v", err)
	}
}

// copyProgram copies a program to path, replacing the file and not its content: a
// running one keeps what it runs. It returns the SHA-256 in hex.
func copyProgram(path, from string) (string, error) {
	in, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, hash), in)
	if err := errors.Join(err, out.Chmod(0o700), out.Close()); err != nil {
		return "", err
	}
	if err := os.Rename(out.Name(), path); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// MountPlugin mounts the registered plugin at path, with the audit keys given.
func (v *VaultServer) MountPlugin(path string, nonHMACRequestKeys, nonHMACResponseKeys []string) {
	v.t.Helper()
	err := v.Client.Sys().Mount(path, &api.MountInput{
		Type: pluginName,
		Config: api.MountConfigInput{
			AuditNonHMACRequestKeys:  nonHMACRequestKeys,
			AuditNonHMACResponseKeys: nonHMACResponseKeys,
		},
	})
	if err != nil {
		v.t.Fatalf("mount plugin: %v", err)
	}
}

// ReloadPlugin reloads our plugin on every node.
func (v *VaultServer) ReloadPlugin() {
	v.t.Helper()
	_, err := v.Client.Logical().Write("sys/plugins/reload/secret/"+pluginName, map[string]any{"scope": "global"})
	if err != nil {
		v.t.Fatalf("reload plugin: %v", err)
	}
}

// Active returns the active node, waiting for one if there is none right now.
func (v *VaultServer) Active() *VaultNode {
	v.t.Helper()
	var active *VaultNode
	v.await("an active node", func(ctx context.Context) error {
		var problems []error
		for _, node := range v.Nodes {
			if node.process.ended() {
				continue
			}
			leader, err := node.Client.Sys().LeaderWithContext(ctx)
			if err != nil {
				problems = append(problems, err)
			} else if leader.IsSelf || !leader.HAEnabled {
				active = node
				return nil
			}
		}
		return errors.Join(append(problems, errors.New("no node is active"))...)
	})
	return active
}

// StepDown makes the active node of a cluster give up and waits until another
// one is active.
func (v *VaultServer) StepDown() {
	v.t.Helper()
	before := v.Active()
	if err := before.Client.Sys().StepDown(); err != nil {
		v.t.Fatalf("step down %s: %v", before.Name, err)
	}
	v.await("another active node", func(ctx context.Context) error {
		for _, node := range v.Nodes {
			leader, err := node.Client.Sys().LeaderWithContext(ctx)
			if err == nil && leader.IsSelf && node != before {
				return nil
			}
		}
		return errors.New("the same or none is active")
	})
}

// Kill ends the first node with SIGKILL. Its plugin processes are left behind,
// as in a real crash, until the test ends.
func (v *VaultServer) Kill() { v.t.Helper(); v.Nodes[0].Kill() }

// Restart stops the first node if it runs, starts it again and unseals it. Only
// a Raft one remembers anything.
func (v *VaultServer) Restart() { v.t.Helper(); v.Nodes[0].Restart() }

// PluginPID is the process id of our plugin on the active node; it waits for
// that process to be there.
func (v *VaultServer) PluginPID() int { v.t.Helper(); return v.Active().PluginPID() }

// Log returns what the first node has logged so far.
func (v *VaultServer) Log() string { return v.Nodes[0].Log() }

// start starts the server and waits until it answers, sealed or not.
func (n *VaultNode) start() error {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.vault.dir, "TMPDIR=" + os.TempDir()}
	process, err := startProcess(n.log, env, n.binary, "server", "-config", n.config)
	if err != nil {
		return err
	}
	n.process = process
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = poll(ctx, func(ctx context.Context) error {
		_, err := n.Client.Sys().SealStatusWithContext(ctx)
		if err != nil && process.ended() {
			cancel()
		}
		return err
	})
	if err != nil {
		process.kill()
		return fmt.Errorf("wait for an answer: %w", err)
	}
	return nil
}

// unseal unseals the node and waits until it serves, as active or as standby.
func (n *VaultNode) unseal(ctx context.Context) error {
	err := poll(ctx, func(ctx context.Context) error {
		// A node that joins answers an error until it has heard of the leader.
		_, err := n.Client.Sys().UnsealWithContext(ctx, n.vault.UnsealKey)
		return err
	})
	if err == nil {
		// One key is enough, but a node that joins unseals behind the answer. Given
		// the key again meanwhile it would unseal twice, and would then not hear of
		// a step-down.
		err = poll(ctx, func(ctx context.Context) error {
			status, err := n.Client.Sys().SealStatusWithContext(ctx)
			if err == nil && status.Sealed {
				err = errors.New("still sealed")
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	// Unsealed does not mean that it serves already; a standby must have found
	// the active node to forward to.
	err = poll(ctx, func(ctx context.Context) error {
		_, err := n.Client.Auth().Token().LookupSelfWithContext(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until it serves: %w", err)
	}
	return nil
}

// Kill ends the server with SIGKILL. Its plugin processes are left behind, as in
// a real crash, until the test ends.
func (n *VaultNode) Kill() { n.process.kill() }

// Stop shuts the server down.
func (n *VaultNode) Stop() { n.process.stop(30 * time.Second) }

// Restart stops the server if it runs, starts it again and unseals it.
func (n *VaultNode) Restart() {
	n.vault.t.Helper()
	n.Stop()
	if err := n.start(); err != nil {
		n.vault.t.Fatalf("restart vault %s: %v\n%s", n.Name, err, lastLines(n.Log(), 20))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.unseal(ctx); err != nil {
		n.vault.t.Fatalf("restart vault %s: %v\n%s", n.Name, err, lastLines(n.Log(), 20))
	}
}

// PID is the process id of the server.
func (n *VaultNode) PID() int { return n.process.pid() }

// PluginPID is the process id of our plugin on this node. It waits until there is
// exactly one: Vault runs further ones for a moment to ask for their metadata.
func (n *VaultNode) PluginPID() int {
	n.vault.t.Helper()
	var pid int
	n.vault.await("one plugin process", func(context.Context) error {
		var children []int
		for _, candidate := range programsBelow(n.vault.PluginDir) {
			if parent(candidate) == n.PID() {
				children = append(children, candidate)
			}
		}
		if len(children) != 1 {
			return fmt.Errorf("%d run", len(children))
		}
		pid = children[0]
		return nil
	})
	return pid
}

// Log returns what the server has logged so far.
func (n *VaultNode) Log() string {
	content, err := os.ReadFile(n.log)
	if err != nil {
		return fmt.Sprintf("(read log: %v)", err)
	}
	return string(content)
}
