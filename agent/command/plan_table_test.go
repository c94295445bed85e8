package command

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const planOfShop = `{"version":1,"shape":{"kind":"clone","strategy":"stream","why":"it is the only one",
"source":{"engine":"postgres","server":"7001","database":"shop","database_id":"16384","version":"15.4","tls":true},
"target":{"engine":"postgres","server":"7002","database":"shop","version":"15.4","tls":false},
"tables":2,"options":{"owner":"stable","acl":"drop"},"target_action":"replace","replaced_owner":"dbops_owner",
"extensions":[{"name":"citext","schema":"public","version":"1.5","target_version":"1.6"}],
"table_list":[{"schema":"app","name":"customer","kind":"table","treatment":"copy","format":"binary","row_security":true,
"columns":[{"name":"id","type":"bigint","not_null":true,"identity":"always"},{"name":"e\u001b[2Jmail\u202e","type":"text","default":"sha256:1"}]},
{"schema":"app","name":"event","kind":"partitioned","treatment":"none","why":"its partitions hold the rows","columns":[]}],
"objects":[{"kind":"index","identity":"app.i","digest":"x"},{"kind":"index","identity":"app.j","digest":"x"},{"kind":"view","identity":"app.v","digest":"x"}],
"not_copied":[{"kind":"grants","name":"all","why":"option acl=drop"}]},"estimates":{"tables":2,"rows":1000,"bytes":2048},
"logins":[{"side":"source","purpose":"read","connection":"prod","role":"prod-read","preset":"readonly","credential_type":"password","creation_statements":["CREATE ROLE \"{{name}}\" IN ROLE r","SELECT '\u001b[2J'"]},
{"side":"target","purpose":"write","connection":"staging","role":"staging-write","credential_type":"password","creation_statements":["CREATE ROLE w"],"revocation_statements":["DROP ROLE w"],"renew_statements":["ALTER ROLE w"]}]}`

// A plan is shown with all that an approver decides on, its digest and the command
// that approves exactly it; nothing in it can rewrite the terminal.
func TestPrintPlan(t *testing.T) {
	t.Parallel()
	op := inState(wire.StateAwaitingApproval)
	op.Options = map[string]string{"jobs": "2", "acl": "drop"} // the plan keeps quiet about jobs
	op.Requester, op.Reason = wire.User{Name: "alice"}, "ticket 7\r\x1b[A"
	op.ApprovalNeeds = []wire.ApprovalStatus{
		{ApprovalNeed: wire.ApprovalNeed{Policy: "prod", Count: 2, Groups: []string{"g1", "g2"}}, Missing: 1, By: []string{"bob"}},
		{ApprovalNeed: wire.ApprovalNeed{Policy: "all", Count: 1, Groups: []string{"g1"}}, By: []string{"bob"}},
	}
	var out bytes.Buffer
	require.NoError(t, printPlan(&out, vaultFlags{}, op, planOfShop, "sha256:abc"))
	require.Equal(t, strings.TrimLeft(`
Operation  clone-1
Requester  alice
Reason     ticket 7\r\x1b[A
Kind       clone
From       prod: postgres 15.4, database shop (16384) of server 7001
Into       staging: postgres 15.4, database shop (not there yet) of server 7002, NOT encrypted
Target     the database there is replaced; it belongs to dbops_owner
Strategy   stream: it is the only one
Options    acl=drop jobs=2 owner=stable
Estimate   2 tables, about 1000 rows, 2.0 KiB

TABLE         KIND                 TREATMENT                           COLUMN              TYPE    NOTES
app.customer  table, row security  copy                                id                  bigint  not null, identity always
                                                                       e\x1b[2Jmail\u202e  text    has a default
app.event     partitioned          none: its partitions hold the rows

Further objects: 2 index, 1 view
Extension citext: 1.6 there, 1.5 here
Not copied: grants all, option acl=drop

Login to read prod, by role prod-read, preset readonly:
  CREATE ROLE "{{name}}" IN ROLE r
  SELECT '\x1b[2J'

Login to write staging, by role staging-write:
  CREATE ROLE w
  renewed by ALTER ROLE w
  ended by DROP ROLE w

Digest: sha256:abc (checked)

It waits for approval: needs 1 more of group g1 or g2 (policy prod).

  dbops approve -plan-digest=sha256:abc clone-1
  dbops reject -reason=… clone-1
`, "\n"), regexp.MustCompile(` +\n`).ReplaceAllString(out.String(), "\n"))

	op.State = wire.StateSucceeded
	out.Reset()
	require.NoError(t, printPlan(&out, vaultFlags{}, op, planOfShop, "sha256:abc"))
	require.NotContains(t, out.String(), "approve")
	require.Error(t, printPlan(&out, vaultFlags{}, op, "no JSON", "sha256:abc"))
}
