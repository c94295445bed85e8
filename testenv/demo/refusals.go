package main

import "strings"

// refusals shows what does not work, and how it is said.
func (d *demo) refusals(s *stage, alice string) {
	d.step("What is refused")
	for _, try := range []struct {
		who, token, why string
		exit            int
		says            []string
		arguments       []string
	}{
		{
			"root", s.vault.RootToken, "root, behind whom nobody stands", 10,
			[]string{"no_identity"},
			[]string{"clone", "-source=prod", "-target=staging"},
		},
		{
			"alice", alice, "the other direction: no policy allows it", 10,
			[]string{"denied", "default_deny"},
			[]string{"clone", "-source=staging", "-target=prod"},
		},
		{
			"alice", alice, "a connection that does not exist", 10,
			[]string{"(denied)"},
			[]string{"clone", "-source=prod", "-target=nowhere"},
		},
		{
			"alice", alice, "somebody else's operations", 10,
			[]string{"denied"},
			[]string{"operations", "-all"},
		},
	} {
		d.shown(try.who+" ", "dbops "+strings.Join(try.arguments, " "))
		out, code := d.dbops(s, try.token, try.arguments...)
		d.say("%s", indent(out))
		for _, word := range try.says {
			if !strings.Contains(out, word) {
				d.t.Fatalf("demo: %s: the answer lacks %q", try.why, word)
			}
		}
		d.expect(code == try.exit, "%s: exit code %d", try.why, code)
	}
	client := s.vault.NewClient(alice)
	d.shown("alice ", "vault read dbops/creds/prod-read")
	_, err := client.Logical().Read("dbops/creds/prod-read")
	d.expect(err != nil && strings.Contains(err.Error(), "403"), "alice cannot have a password for production")
	root := s.vault.Client
	d.shown("root ", "vault read dbops/creds/prod-read")
	_, err = root.Logical().Read("dbops/creds/prod-read")
	d.expect(err != nil && strings.Contains(err.Error(), "403"), "nor can root: the connection is for operations only")
}
