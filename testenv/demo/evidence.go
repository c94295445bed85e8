package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// auditEntry is what we read of one line of Vault's audit file.
type auditEntry struct {
	Type    string
	Error   string
	Request struct {
		Path string
		Data map[string]json.RawMessage
	}
	Response struct {
		Data map[string]json.RawMessage
	}
}

// auditEntries reads the file that Vault's audit device writes.
func (d *demo) auditEntries(s *stage) []auditEntry {
	file, err := os.Open(s.auditFile)
	if err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	defer file.Close()
	var entries []auditEntry
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return entries
		}
		var entry auditEntry
		if err := json.Unmarshal(line, &entry); err != nil {
			d.t.Fatalf("demo: audit file: %v", err)
		}
		entries = append(entries, entry)
	}
}

// showEvents reads the operation's events back from the audit file, by the rule
// that only answered requests of the agent's own path count.
func (d *demo) showEvents(s *stage, id string) {
	d.step("The operation's events, read back from Vault's audit file")
	path := wire.Mount("dbops").Events(agentName, id)
	bySeq := map[string]string{}
	var order []wire.Event
	for _, entry := range d.auditEntries(s) {
		if entry.Type != "response" || entry.Error != "" || entry.Request.Path != path {
			continue
		}
		var texts []string
		if err := json.Unmarshal(entry.Request.Data[wire.EventsKey], &texts); err != nil {
			d.t.Fatalf("demo: events in the audit file are not readable: %v", err)
		}
		for _, text := range texts {
			var event wire.Event
			if err := json.Unmarshal([]byte(text), &event); err != nil {
				d.t.Fatalf("demo: event in the audit file: %v", err)
			}
			key := event.Epoch + "/" + event.Seq
			if known, seen := bySeq[key]; seen {
				if known != text {
					d.t.Fatalf("demo: two copies of event %s differ", key)
				}
				continue
			}
			bySeq[key] = text
			order = append(order, event)
		}
	}
	table := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "   SEQ\tTIME\tEVENT\tSTEP\tOUTCOME\tOBJECT\tROWS\tUSER")
	for _, e := range order {
		fmt.Fprintf(table, "   %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, e.T.Format("15:04:05.000"), e.EventType, e.Phase, e.Outcome, e.Object, e.Rows, e.User.Name)
	}
	if err := table.Flush(); err != nil {
		d.t.Fatalf("demo: %v", err)
	}
	d.expect(len(order) > 5, "%d events, each in an answered request of %s", len(order), path)
	for i := 1; i < len(order); i++ {
		before := bySeq[order[i-1].Epoch+"/"+order[i-1].Seq]
		if order[i].Prev != wire.EventHash(before) {
			d.t.Fatalf("demo: event %s does not continue event %s", order[i].Seq, order[i-1].Seq)
		}
	}
	d.expect(true, "each carries the hash of the one before: none is missing, none was changed")
	d.expect(slices.ContainsFunc(order, func(e wire.Event) bool {
		return e.EventType == wire.EventOperationFinished && e.Outcome == "success"
	}), "the last word is operation_finished, success")
}

// checkLogins looks for the leased logins on both servers.
func (d *demo) checkLogins(s *stage, id string) {
	d.step("The leased logins")
	prefix := wire.Mount("dbops").AgentOperation(agentName, id) + "/accounts/"
	count := 0
	for _, entry := range d.auditEntries(s) {
		if entry.Type != "response" || !strings.HasPrefix(entry.Request.Path, prefix) {
			continue
		}
		var username string
		if err := json.Unmarshal(entry.Response.Data["username"], &username); err != nil {
			d.t.Fatalf("demo: no user name in the audited answer of %s", entry.Request.Path)
		}
		var password string
		if err := json.Unmarshal(entry.Response.Data["password"], &password); err != nil || !strings.HasPrefix(password, "hmac-sha256:") {
			d.t.Fatalf("demo: the audited answer of %s shows a password, or none", entry.Request.Path)
		}
		purpose := strings.TrimPrefix(entry.Request.Path, prefix)
		server, where := s.source, "production"
		if strings.HasSuffix(purpose, string(wire.Target)) {
			server, where = s.target, "staging"
		}
		d.expect(exists(server, username) == "0", "%-16s %s is gone from %s", purpose, username, where)
		count++
	}
	d.expect(count >= 4, "Vault had made %d logins for this operation; their passwords stand in no log", count)
	for where, server := range map[string]*testenv.PostgresServer{"production": s.source, "staging": s.target} {
		rest := server.Value("postgres", `SELECT coalesce(string_agg(rolname, ', ' ORDER BY rolname), '') FROM pg_roles
			WHERE rolcanlogin AND rolname NOT IN ('postgres', 'dbops_vault', current_user)`)
		d.expect(rest == "", "no other login is left on %s", where)
	}
}

func exists(server *testenv.PostgresServer, login string) string {
	return server.Value("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = $1", login)
}
