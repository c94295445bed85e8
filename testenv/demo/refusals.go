package main

import "strings"

// refusals shows what does not work, and how it is said.
func (d *demo) refusals(s *stage) {
	d.step("What is refused")
	for _, try := range []struct {
		who, token, why string
		exit            int
		says            []string
		arguments       []string
	}{
		{
			"root", s.vault.RootToken, "root, because no identity stands behind it", 10,
			[]string{"no_identity"},
			[]string{"clone", "-source=prod", "-target=staging"},
		},
		{
			"bob", s.bob.token, "bob, because no policy names him", 10,
			[]string{"denied", "default_deny"},
			[]string{"clone", "-source=prod", "-target=staging"},
		},
		{
			"alice", s.alice.token, "the other direction: her policy names production as a source only", 10,
			[]string{"denied", "default_deny"},
			[]string{"clone", "-source=staging", "-target=prod"},
		},
		{
			"alice", s.alice.token, "everybody's operations, which are for operators and auditors", 10,
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
		d.expect(code == try.exit, "refused: %s (exit code %d)", try.why, code)
	}
	for _, one := range []person{s.alice, {name: "root", token: s.vault.RootToken}} {
		d.shown(one.name+" ", "vault read dbops/creds/prod-read")
		_, err := s.vault.NewClient(one.token).Logical().Read("dbops/creds/prod-read")
		if err != nil {
			d.say("%s", indent(lastLine(err.Error())))
		}
		d.expect(err != nil && strings.Contains(err.Error(), "Code: 403"), "refused: a password for production, to %s", one.name)
	}
}

// lastLine is where an error of vault says what it is about.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
