package command_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/command"
)

var update = flag.Bool("update", false, "write the expected output in scripts anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"dbops": func() { os.Exit(command.RunCLI(os.Args[1:], "test")) },
	})
}

// Help texts, usage errors and exit codes of the program as it is typed. Nothing
// here talks to a Vault.
func TestCLI(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"), UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("VAULT_ADDR", "http://127.0.0.1:1") // nobody listens there
			// What the plugin's own test makes of a receipt.
			golden, err := os.ReadFile(filepath.Join("..", "..", "plugin", "testdata", "receipt.golden"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(env.WorkDir, "golden"), golden, 0o600)
		},
	})
}
