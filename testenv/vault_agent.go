package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Agent starts Vault's own agent with the root token, which writes each template into
// a file of that name in the directory it returns. What has no lease and does not say
// when it changes is read again after ten minutes only. It ends when the test ends.
func (v *VaultServer) Agent(t TB, templates map[string]string) (dir string) {
	t.Helper()
	binary, err := locate(PartVault)
	if err != nil {
		t.Fatalf("start Vault's agent: %v", err)
	}
	dir = t.TempDir()
	token, config := filepath.Join(dir, "token"), filepath.Join(dir, "agent.hcl")
	var b strings.Builder
	fmt.Fprintf(&b, "vault { address = %q }\n", v.Address)
	fmt.Fprintf(&b, "auto_auth { method \"token_file\" { config = { token_file_path = %q } } }\n", token)
	fmt.Fprintf(&b, "template_config { static_secret_render_interval = \"10m\" }\n")
	for name, content := range templates {
		fmt.Fprintf(&b, "template {\n  contents = %q\n  destination = %q\n}\n", content, filepath.Join(dir, name))
	}
	for path, content := range map[string]string{token: v.RootToken, config: b.String()} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatalf("start Vault's agent: %v", err)
		}
	}
	log := filepath.Join(dir, "agent.log")
	p, err := startProcess(log, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, binary, "agent", "-config="+config)
	if err != nil {
		t.Fatalf("start Vault's agent: %v", err)
	}
	t.Cleanup(func() {
		p.stop(5 * time.Second)
		if content, err := os.ReadFile(log); err == nil && failed(t) {
			t.Logf("log of Vault's agent:\n%s", lastLines(string(content), 40))
		}
	})
	return dir
}
