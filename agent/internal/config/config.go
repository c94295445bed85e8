// Package config reads the agent's configuration file: one file in HCL's native
// syntax, strict, without secrets. A mistake is named with file, line and column,
// and all mistakes are told at once.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Config is the whole file.
type Config struct {
	// Name is the agent's: of its AppRole and of agents/:name.
	Name string `hcl:"name"`
	// StateDir holds journal and spool. Losing it loses undelivered events.
	StateDir string `hcl:"state_dir,optional"`
	// RunDir holds sockets of sandboxes, in memory.
	RunDir string `hcl:"run_dir,optional"`
	// MaxOperations is how many operations run at once.
	MaxOperations int    `hcl:"max_operations,optional"`
	LogLevel      string `hcl:"log_level,optional"`  // trace, debug, info, warn, error
	LogFormat     string `hcl:"log_format,optional"` // text or json

	Vault     Vault      `hcl:"vault,block"`
	Sandbox   Sandbox    `hcl:"sandbox,block"`
	Telemetry *Telemetry `hcl:"telemetry,block"` // nil: no metrics are served
}

// Vault says where Vault is and how the agent logs in.
type Vault struct {
	Address   string  `hcl:"address"`
	CACert    string  `hcl:"ca_cert,optional"` // file; empty: the system's
	Namespace string  `hcl:"namespace,optional"`
	Mount     string  `hcl:"mount,optional"`
	AppRole   AppRole `hcl:"approle,block"`
}

// AppRole names the files the agent's identity is in.
type AppRole struct {
	Mount        string `hcl:"mount,optional"`
	RoleIDFile   string `hcl:"role_id_file"`
	SecretIDFile string `hcl:"secret_id_file"`
	// Wrapped says that secret_id_file holds a wrapping token.
	Wrapped bool `hcl:"wrapped,optional"`
	// RemoveSecretIDAfterRead removes secret_id_file after a login.
	RemoveSecretIDAfterRead bool `hcl:"remove_secret_id_after_read,optional"`
	// KeepToken keeps the token in run_dir, which must be in memory, so that a
	// restart of the agent needs no new secret-id; a reboot does.
	KeepToken bool `hcl:"keep_token,optional"`
}

// Sandbox says how operations are isolated.
type Sandbox struct {
	// ToolsImage is the image with the databases' client tools.
	ToolsImage string `hcl:"tools_image"`
	// DockerHost is the daemon's unix socket; empty: DOCKER_HOST, else the usual.
	DockerHost string `hcl:"docker_host,optional"`
	MemoryMiB  int    `hcl:"memory_mib,optional"` // of one sandbox, tmp included
	TmpMiB     int    `hcl:"tmp_mib,optional"`    // of its /tmp, in memory
}

// defaults is what holds where the file is silent.
func defaults() Config {
	return Config{
		StateDir:      "/var/lib/dbops-agent",
		RunDir:        "/run/dbops-agent",
		MaxOperations: 2,
		LogLevel:      "info",
		LogFormat:     "json",
		Vault:         Vault{Mount: wire.DefaultMount, AppRole: AppRole{Mount: "approle"}},
		Sandbox:       Sandbox{MemoryMiB: 256, TmpMiB: 64},
	}
}

// Load reads and checks the file at path.
func Load(path string) (Config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(filepath.Base(path), content)
}

// Parse checks content; name stands in the messages.
func Parse(name string, content []byte) (Config, error) {
	file, problems := hclparse.NewParser().ParseHCL(content, name)
	c := defaults()
	if !problems.HasErrors() {
		problems = append(problems, gohcl.DecodeBody(file.Body, nil, &c)...)
		body, ok := file.Body.(*hclsyntax.Body)
		if !ok {
			return Config{}, fmt.Errorf("read configuration: parser answered a %T", file.Body)
		}
		problems = append(problems, c.check(body, problems)...)
	}
	if problems.HasErrors() {
		return Config{}, fault(problems)
	}
	return c, nil
}

// mostMemoryMiB is far above any machine: in bytes, 2^44 would be 0, which to Docker is
// no limit.
const mostMemoryMiB = 1 << 24

// check tells what is wrong with the values. What already has a problem is left
// alone.
func (c Config) check(body *hclsyntax.Body, known hcl.Diagnostics) hcl.Diagnostics {
	k := checker{root: body}
	for _, d := range known {
		if d.Subject != nil {
			k.lines = append(k.lines, d.Subject.Start.Line)
		}
	}
	k.that(wire.ValidAgentName(c.Name), "must match "+wire.AgentNamePattern, "name")
	k.that(filepath.IsAbs(c.StateDir), "must be an absolute path", "state_dir")
	k.that(filepath.IsAbs(c.RunDir), "must be an absolute path", "run_dir")
	k.that(c.StateDir != c.RunDir, "must differ from state_dir", "run_dir")
	k.that(c.MaxOperations >= 1 && c.MaxOperations <= 16, "must be 1 to 16", "max_operations")
	k.that(hclog.LevelFromString(c.LogLevel) != hclog.NoLevel, "must be trace, debug, info, warn or error", "log_level")
	k.that(c.LogFormat == "text" || c.LogFormat == "json", "must be text or json", "log_format")
	k.that(strings.HasPrefix(c.Vault.Address, "https://") || strings.HasPrefix(c.Vault.Address, "http://"),
		"must begin with https:// (or http:// on the loopback)", "vault", "address")
	k.that(strings.Trim(c.Vault.Mount, "/") != "", "must not be empty", "vault", "mount")
	k.that(strings.Trim(c.Vault.AppRole.Mount, "/") != "", "must not be empty", "vault", "approle", "mount")
	k.that(c.Vault.AppRole.RoleIDFile != "", "must not be empty", "vault", "approle", "role_id_file")
	k.that(c.Vault.AppRole.SecretIDFile != "", "must not be empty", "vault", "approle", "secret_id_file")
	k.that(c.Sandbox.ToolsImage != "", "must not be empty", "sandbox", "tools_image")
	k.that(c.Sandbox.DockerHost == "" || strings.HasPrefix(c.Sandbox.DockerHost, "unix://"),
		"must be a local socket, unix://…: sandboxes live on this host", "sandbox", "docker_host")
	k.that(c.Sandbox.MemoryMiB >= 64 && c.Sandbox.MemoryMiB <= mostMemoryMiB, fmt.Sprintf("must be 64 to %d", mostMemoryMiB), "sandbox", "memory_mib")
	k.that(c.Sandbox.TmpMiB >= 1 && c.Sandbox.TmpMiB < c.Sandbox.MemoryMiB, "must be at least 1 and less than memory_mib", "sandbox", "tmp_mib")
	if c.Telemetry != nil {
		_, _, err := c.Telemetry.Address()
		k.that(err == nil, fmt.Sprint(err), "telemetry", "listen")
	}
	return k.problems
}

// checker finds the place of a value in the file.
type checker struct {
	root     *hclsyntax.Body
	lines    []int
	problems hcl.Diagnostics
}

func (k *checker) that(ok bool, problem string, path ...string) {
	if ok {
		return
	}
	body := k.root
	place := body.Range()
	for _, name := range path[:len(path)-1] {
		for _, block := range body.Blocks {
			if block.Type == name {
				body, place = block.Body, block.DefRange()
				break
			}
		}
	}
	name := path[len(path)-1]
	attribute, written := body.Attributes[name]
	if written {
		place = attribute.Expr.Range()
	}
	for _, line := range k.lines {
		if line == place.Start.Line || !written {
			return // told already, as a wrong type or a missing field
		}
	}
	k.problems = append(k.problems, &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: strings.Join(path, "."), Detail: problem, Subject: &place,
	})
}

// fault is every problem on a line of its own, in the order of the file.
func fault(problems hcl.Diagnostics) error {
	sort.SliceStable(problems, func(i, j int) bool {
		a, b := problems[i].Subject, problems[j].Subject
		return a != nil && b != nil && a.Start.Byte < b.Start.Byte
	})
	var lines []string
	for _, p := range problems {
		line := p.Summary + ": " + p.Detail
		if p.Subject != nil {
			line = fmt.Sprintf("%s:%d,%d: %s", p.Subject.Filename, p.Subject.Start.Line, p.Subject.Start.Column, line)
		}
		lines = append(lines, line)
	}
	return errors.New(strings.Join(lines, "\n"))
}
