package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every example of a configuration in this repository is one.
func TestLoad_Examples(t *testing.T) {
	t.Parallel()
	var examples []string
	for _, pattern := range []string{"testdata/*.hcl", "../../../scripts/*/*.hcl", "../../../scripts/*/*/*.hcl"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, path := range found {
			if strings.HasPrefix(filepath.Base(path), "agent") {
				examples = append(examples, path)
			}
		}
	}
	require.NotEmpty(t, examples)
	for _, path := range examples {
		_, err := Load(path)
		require.NoError(t, err, path)
	}
}

// Every field can be set, and what is not set has its default.
func TestLoad_FullAndMinimal(t *testing.T) {
	t.Parallel()
	full, err := Load("testdata/agent-full.hcl")
	require.NoError(t, err)
	require.Equal(t, Config{
		Name: "db-host-1", StateDir: "/srv/dbops", RunDir: "/run/dbops", MaxOperations: 4, LogLevel: "debug", LogFormat: "text",
		Vault: Vault{
			Address: "https://vault.example.com:8200", CACert: "/etc/dbops/ca.pem", Namespace: "team", Mount: "data/dbops",
			AppRole: AppRole{
				Mount: "agents", RoleIDFile: "/etc/dbops/role_id", SecretIDFile: "/etc/dbops/secret_id",
				Wrapped: true, RemoveSecretIDAfterRead: true, KeepToken: true,
			},
		},
		Sandbox:   Sandbox{ToolsImage: "postgres:17", DockerHost: "unix:///run/docker.sock", MemoryMiB: 512, TmpMiB: 128},
		Telemetry: &Telemetry{Listen: "127.0.0.1:9649"},
	}, full)

	minimal, err := Load("testdata/agent-minimal.hcl")
	require.NoError(t, err)
	want := defaults()
	want.Name, want.Vault.Address = "db-host-1", "http://127.0.0.1:8200"
	want.Vault.AppRole.RoleIDFile, want.Vault.AppRole.SecretIDFile = "role_id", "secret_id"
	want.Sandbox.ToolsImage = "postgres:17"
	require.Equal(t, want, minimal)
}

// All mistakes are told at once, each with its place.
func TestParse_AllProblemsWithPlaces(t *testing.T) {
	t.Parallel()
	_, err := Parse("agent.hcl", []byte(`name = "Not Good"
run_dir = "run"
colour = "red"
max_operations = "many"
vault {
  address = "vault:8200"
  approle {
    role_id_file = "r"
  }
}
sandbox {
  tools_image = ""
  docker_host = "tcp://other:2375"
}
sandbox {
  tools_image = "x"
}
`))
	require.Error(t, err)
	for _, part := range []string{
		"agent.hcl:1,8: name: must match", "agent.hcl:2,11: run_dir: must be an absolute path", "agent.hcl:3,1: ",
		"\nagent.hcl:4,19: ", "agent.hcl:6,13: vault.address: must begin", "agent.hcl:7,11: ", "agent.hcl:15,1: ",
	} {
		require.Contains(t, err.Error(), part)
	}
}

// The memory of a sandbox is bounded, so that its bytes are never none or a few.
func TestParse_MemoryBound(t *testing.T) {
	t.Parallel()
	minimal, err := os.ReadFile("testdata/agent-minimal.hcl")
	require.NoError(t, err)
	with := func(mib string) []byte {
		return bytes.Replace(minimal, []byte("tools_image"), []byte("memory_mib = "+mib+"\n  tools_image"), 1)
	}
	for _, mib := range []string{"-1", "63", "16777217", "17592186044416", "17592186044480"} {
		_, err := Parse("agent.hcl", with(mib))
		require.ErrorContains(t, err, "sandbox.memory_mib: must be 64 to 16777216", mib)
	}
	for _, mib := range []string{"65", "16777216"} {
		_, err := Parse("agent.hcl", with(mib))
		require.NoError(t, err, mib)
	}
}

// A key written twice is refused: the second would silently win elsewhere.
func TestParse_DoubledKey(t *testing.T) {
	t.Parallel()
	_, err := Parse("agent.hcl", []byte("name = \"a\"\nname = \"b\"\n"))
	require.ErrorContains(t, err, "agent.hcl:2,1: ")
}

// No file makes the parser panic, and what is accepted has a usable name.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"testdata/agent-full.hcl", "testdata/agent-minimal.hcl"} {
		content, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := Parse("agent.hcl", content)
		if err == nil {
			require.NotEmpty(t, c.Name)
			require.NotEmpty(t, c.Sandbox.ToolsImage)
		}
	})
}
