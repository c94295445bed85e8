package main

import (
	"os"
	"path/filepath"
	"strings"
)

// showReceipt fetches the operation's receipt, verifies it as somebody without any
// Vault would, and shows that a changed one is refused.
func (d *demo) showReceipt(s *stage, id string) {
	d.step("The operation's receipt, signed by Vault's plugin and verified without Vault")
	file, keys := filepath.Join(d.dir, "receipt.json"), filepath.Join(d.dir, "keys.pem")
	d.shown("alice ", "dbops receipt "+id+" -out=receipt.json")
	if out, code := d.dbops(s, s.alice.token, "receipt", id, "-out="+file); code != 0 {
		d.t.Fatalf("demo: dbops receipt ended with %d: %s", code, out)
	}
	d.shown("alice ", "vault read -field=pem dbops/keys > keys.pem")
	answer, err := s.vault.NewClient(s.alice.token).Logical().Read("dbops/keys")
	if err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	bundle, ok := answer.Data["pem"].(string)
	if !ok {
		d.t.Fatalf("demo: keys answer no pem")
	}
	d.writeFile(keys, bundle)
	d.shown("", "dbops receipt verify receipt.json -keys=keys.pem")
	out, code := d.dbops(s, "", "receipt", "verify", file, "-keys="+keys)
	d.say("%s", indent(out))
	d.expect(code == 0 && strings.Contains(out, id), "verified; what the plugin attests stands apart from what the agent reported")

	content, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	d.writeFile(file, strings.Replace(string(content), `"payload":"ey`, `"payload":"eX`, 1))
	out, code = d.dbops(s, "", "receipt", "verify", file, "-keys="+keys)
	d.say("%s", indent(out))
	d.expect(code == 17, "refused after one character of it was changed (exit code %d)", code)
}

func (d *demo) writeFile(file, text string) {
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.t.Fatalf("demo: %v", err)
	}
}
