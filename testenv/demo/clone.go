package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// startAgent starts a real agent with the configuration dbops setup printed.
func (d *demo) startAgent(s *stage) {
	d.step("An agent on the database host")
	short, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	d.t.Cleanup(func() {
		if err := os.RemoveAll(short); err != nil {
			d.t.Logf("demo: %v", err)
		}
	})
	state, run := filepath.Join(d.dir, "state"), filepath.Join(short, "run")
	text := "state_dir = \"" + state + "\"\nrun_dir = \"" + run + "\"\n" + s.agentHCL
	config := filepath.Join(d.dir, "agent.hcl")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	// A copy, so that the next demo finds the process of one that was killed.
	program := filepath.Join(d.dir, "dbops-agent")
	d.copyProgram(testenv.Agent(d.t), program)
	d.shown("", "dbops-agent -config agent.hcl")
	agent := testenv.StartAgent(d.t, program, config)
	d.say("   pid %d, log in with its wrapped secret-id, polls Vault; nothing connects to it", agent.PID())
	d.t.Cleanup(func() { d.agentLog(agent) })
}

// agentLog shows what the agent said when the demo did not come to its end.
func (d *demo) agentLog(agent *testenv.AgentProcess) {
	if d.done {
		return
	}
	lines := strings.Split(strings.TrimSpace(agent.Log()), "\n")
	if len(lines) > 40 {
		lines = lines[len(lines)-40:]
	}
	d.t.Logf("log of the agent:\n%s", strings.Join(lines, "\n"))
}

// clone asks for the clone as alice and follows it.
func (d *demo) clone(s *stage) (id string) {
	d.step("Alice asks for a clone of production over staging")
	arguments := []string{"-source=prod", "-target=staging", "-reason=weekly refresh"}
	d.shown("alice ", `dbops clone -source=prod -target=staging -reason="weekly refresh"`)
	out, code := d.dbops(s, s.alice.token, append([]string{"clone", "-format=json", "-detach"}, arguments...)...)
	var op struct {
		ID       string
		State    string
		Decision struct {
			Allowed  bool
			Policies []string
			Reason   string
		}
	}
	if code != 0 || json.Unmarshal([]byte(out), &op) != nil {
		d.t.Fatalf("demo: dbops clone ended with %d: %s", code, out)
	}
	d.expect(op.Decision.Allowed, "decision: allowed by policy %s (%s)", strings.Join(op.Decision.Policies, ", "), op.Decision.Reason)

	follow := d.command(s, s.alice.token, "operation", "-follow", op.ID)
	var errors bytes.Buffer
	// On a terminal this is the bar, else one JSON object a line.
	follow.Stdout, follow.Stderr = os.Stdout, &errors
	if out, code := d.finish(follow, &errors); code != 0 {
		d.t.Fatalf("demo: the clone ended with %d: %s", code, out)
	}
	d.step("What came of it")
	d.shown("alice ", "dbops operation "+op.ID)
	out, code = d.dbops(s, s.alice.token, "operation", op.ID)
	d.say("%s", indent(out))
	d.expect(code == 0 && strings.Contains(out, "succeeded"), "the operation succeeded")
	d.expect(strings.Contains(out, "shop.customers") && !strings.Contains(out, "  NO"), "every table has the same rows and digest on both sides")
	d.shown("alice ", "dbops plan "+op.ID)
	out, code = d.dbops(s, s.alice.token, "plan", op.ID)
	lines := strings.Split(out, "\n")
	d.say("   … %d lines: both databases as they were found, each table with its columns", len(lines))
	d.say("%s", indent(lines[len(lines)-1]))
	d.expect(code == 0 && strings.Contains(out, "(checked)"), "the plan is the one that was decided on")
	d.shown("alice ", "dbops operations")
	out, code = d.dbops(s, s.alice.token, "operations")
	d.say("%s", indent(out))
	d.expect(code == 0 && strings.Contains(out, op.ID), "alice sees what she asked for")
	return op.ID
}

func indent(text string) string { return "   " + strings.ReplaceAll(text, "\n", "\n   ") }

// checkCopy looks at the target with its own eyes.
func (d *demo) checkCopy(s *stage) {
	const both = `SELECT (SELECT count(*) FROM shop.customers) || ' customers, ' || (SELECT count(*) FROM shop.order_items) || ' order items, '
		|| (SELECT count(*) FROM pg_class WHERE relnamespace = 'shop'::regnamespace) || ' relations'`
	source, target := s.source.Value("shop", both), s.target.Value("shop", both)
	d.expect(source == target, "production and staging now both hold %s", target)
	d.expect(s.target.Value("shop", "SELECT count(*) FROM pg_class WHERE relname = 'left_over_from_last_week'") == "0",
		"what was in staging before is gone")
	d.expect(s.target.Value("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'dbops\\_%'") == "0",
		"no staging database is left behind")
}
