package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// Short names of the duties, for the table below.
const (
	adm = "admin"
	dev = "developer"
	ana = "analyst"
	req = "requester"
	app = "approver"
	opr = "operator"
	aud = "auditor"
	con = "connection-admin"
	pol = "policy-admin"
	res = "responder"
	met = "metrics"
	age = "agent"
)

// duties are the columns of the matrix.
var duties = []string{adm, dev, ana, req, app, opr, aud, con, pol, res, met, age}

// reach is a row of the matrix: who gets through Vault's ACL to a path. The names in
// paths are of nothing that exists, so that whoever gets through does no harm.
type reach struct {
	path                      string
	read, list, write, remove []string
}

// everybody is who has any duty but a machine's, whose policy has no more than it
// needs to work.
var everybody = without(duties, age, met)

func without(all []string, some ...string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(d string) bool { return slices.Contains(some, d) })
}

// nothing is the id of no operation.
const nothing = "op-00000000000000000000000000"

// matrix is written by hand, beside the policies and not from them: who may do what
// is a decision, and a change of it must be seen here too.
var matrix = []reach{
	{path: "info", read: everybody},

	// Servers and logins.
	{path: "config/", list: []string{adm, opr, aud, con, res}},
	{path: "config/none", read: []string{adm, opr, aud, con, res}, write: []string{adm, opr}, remove: []string{adm, opr}},
	{path: "roles/", list: []string{adm, opr, aud, con, res}},
	{path: "roles/none", read: []string{adm, opr, aud, con, res}, write: []string{adm, opr}, remove: []string{adm, opr}},
	{path: "static-roles/", list: []string{adm, opr, aud, res}},
	{path: "static-roles/none", read: []string{adm, opr, aud, res}, write: []string{adm, opr}, remove: []string{adm, opr}},
	{path: "creds/none"},
	{path: "creds/readonly-none", read: []string{dev, ana}},
	{path: "creds/readwrite-none", read: []string{dev}},
	{path: "creds/owner-none"},
	{path: "static-creds/none"},
	{path: "rotate-root/none", write: []string{adm, opr}},
	{path: "rotate-role/none", write: []string{adm, opr}},
	{path: "rotate-all/none", write: []string{adm, opr}},
	{path: "reset/none", write: []string{adm, opr}},
	{path: "reload/none", write: []string{adm, opr}},
	{path: "revocations", list: []string{adm, opr, aud, res}},
	{path: "revocations/none", read: []string{adm, opr, aud, res}},

	// What operations may know and do.
	{path: "connections/", list: []string{adm, opr, aud, con, pol, res}},
	{path: "connections/none", read: []string{adm, opr, aud, con, pol, res}, write: []string{adm, con}, remove: []string{adm, con}},
	{path: "policies/", list: []string{adm, opr, aud, pol, res}},
	{path: "policies/none", read: []string{adm, opr, aud, pol, res}, write: []string{adm, pol}, remove: []string{adm, pol}},
	{path: "policies/none/evaluate", read: []string{adm, opr, aud, pol, res}, write: []string{adm, pol}},

	// Operations.
	{path: "clone/none/nobody", write: []string{dev, req}},
	{path: "merge/none/nobody", write: []string{dev, req}},
	{path: "migrate/none/nobody", write: []string{dev, req}},
	{path: "backup/none", write: []string{dev, req}},
	{path: "restore/none/nobody", write: []string{dev, req}},
	{path: "operations", read: []string{dev, req, app}, list: []string{dev, req, app}},
	{path: "operations/{foreign}", read: []string{dev, req, app}},
	{path: "operations/{foreign}/plan", read: []string{dev, req, app}},
	{path: "operations/{foreign}/report", read: []string{dev, req, app}},
	{path: "operations/{foreign}/receipt", read: []string{dev, req}},
	{path: "operations/{foreign}/cancel", write: []string{dev, req}},
	{path: "operations/{foreign}/approve", write: []string{app}},
	{path: "operations/{foreign}/reject", write: []string{app}},
	{path: "all/operations", read: []string{adm, opr, aud, res}, list: []string{adm, opr, aud, res}},
	{path: "all/operations/{nothing}", read: []string{adm, opr, aud, res}},
	{path: "all/operations/{nothing}/plan", read: []string{adm, opr, aud, res}},
	{path: "all/operations/{nothing}/report", read: []string{adm, opr, aud, res}},
	{path: "all/operations/{nothing}/receipt", read: []string{adm, opr, aud, res}},
	{path: "all/operations/{nothing}/cancel", write: []string{adm, opr}},
	{path: "all/operations/{nothing}/acknowledge", write: []string{adm, opr}},
	{path: "keys", read: []string{adm, dev, req, app, opr, aud, res}},
	{path: "keys/rotate", write: []string{adm, opr}},

	// Agents. Their work protocol is nobody's but theirs, each below its own name.
	{path: "agents/", list: []string{adm, opr, aud, res}},
	{path: "agents/none", read: []string{adm, opr, aud, res}, write: []string{adm, opr}, remove: []string{adm, opr}},
	{path: "agents/none/poll"},
	{path: "agents/none/operations/{nothing}/plan"},
	{path: "agents/none/operations/{nothing}/accounts/inspect/source"},
	{path: "agents/none/operations/{nothing}/events"},
	{path: "agents/none/operations/{nothing}/finish"},
	{path: "agents/none/operations/{nothing}/accounts/source"},
	{path: "agents/walker/poll", write: []string{age}},
	{path: "agents/walker/operations/{nothing}/plan", write: []string{age}},
	{path: "agents/walker/operations/{nothing}/accounts/inspect/source", write: []string{age}},
	{path: "agents/walker/operations/{nothing}/events", write: []string{age}},
	{path: "agents/walker/operations/{nothing}/finish", write: []string{age}},

	// Looking after it all.
	{path: "posture", read: []string{adm, opr, aud}},
	{path: "posture/none", read: []string{adm, opr, aud}},
	{path: "metrics", read: []string{adm, opr, aud, met}},
	{path: "chains", read: []string{adm, aud}},
	{path: "facts", read: []string{adm, opr, aud}},
	{path: "facts/ack", write: []string{adm, opr}},
	{path: "agents/none/facts"},
	{path: "agents/walker/facts", read: []string{age}, write: []string{age}},
	{path: "lockdown", read: []string{adm, opr, aud, res}, write: []string{res}},
	{path: "lockdown/break-glass", read: []string{adm, pol, res}, write: []string{adm, pol}, remove: []string{adm, pol}},
	{path: "unlock", write: []string{res}},
	{path: "settings", read: []string{adm, opr, aud, pol, res}, write: []string{adm, pol}},
}

// verbs are the ways to ask, each with the method and the column of a row.
var verbs = []struct {
	name, method string
	of           func(reach) []string
}{
	{"read", http.MethodGet, func(r reach) []string { return r.read }},
	{"list", "LIST", func(r reach) []string { return r.list }},
	{"write", http.MethodPut, func(r reach) []string { return r.write }},
	{"delete", http.MethodDelete, func(r reach) []string { return r.remove }},
}

// throughACL asks and reports whether Vault's ACL let the request through to
// something that the plugin does, with the answer's status and code.
func throughACL(t *testing.T, client *api.Client, method, path string) (through bool, status int, code wire.Code) {
	t.Helper()
	request := client.NewRequest(method, "/v1/"+path)
	if method == http.MethodPut {
		require.NoError(t, request.SetJSONBody(map[string]any{}))
	}
	response, err := client.RawRequestWithContext(t.Context(), request) //nolint:staticcheck // the way to choose the method
	var refusal *api.ResponseError
	if errors.As(err, &refusal) {
		text := strings.Join(refusal.Errors, "\n")
		if parsed := wire.ParseError(text); parsed != nil {
			return true, refusal.StatusCode, parsed.Code
		}
		refused := refusal.StatusCode == http.StatusForbidden && strings.Contains(text, "permission denied")
		nothing := strings.Contains(text, "unsupported path") || strings.Contains(text, "unsupported operation")
		return !refused && !nothing, refusal.StatusCode, ""
	}
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	return true, response.StatusCode, ""
}

// Who may do what, duty by duty, path by path, verb by verb, on a real Vault with the
// policies that dbops setup writes: both what works and what is refused. Whoever gets
// through to an operation of somebody else finds none.
func TestRoles_Matrix(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{WithoutAgent: true})
	foreign := s.Ask(nil)
	clients := map[string]*api.Client{age: s.AgentIdentity("walker")}
	for _, duty := range duties {
		if duty != age {
			clients[duty], _ = s.Person("walker-"+duty, "dbops-"+duty)
		}
	}
	asked := 0
	for _, row := range matrix {
		for _, verb := range verbs {
			for _, duty := range duties {
				path := string(s.Mount()) + "/" + strings.NewReplacer("{foreign}", foreign, "{nothing}", nothing).Replace(row.path)
				through, status, code := throughACL(t, clients[duty], verb.method, path)
				want := slices.Contains(verb.of(row), duty)
				assert.Equal(t, want, through, "%s by %s of %s: status %d, code %q", verb.name, duty, row.path, status, code)
				assert.Less(t, status, 500, "%s by %s of %s: %s", verb.name, duty, row.path, code)
				if through && want && strings.Contains(row.path, "{foreign}") {
					assert.Equal(t, http.StatusNotFound, status, "%s by %s of %s: %s", verb.name, duty, row.path, code)
				}
				asked++
			}
		}
	}
	op, err := s.Operation(foreign)
	require.NoError(t, err)
	require.Equal(t, wire.StateRequested, op.State, "nobody has touched it")
	t.Logf("%d requests, %d duties, %d paths", asked, len(duties), len(matrix))
}

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// Every path that the plugin tells of is in the matrix.
func TestRoles_MatrixIsWhole(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{SkipAudit: true})
	answer, err := v.Client.Logical().ReadRawWithData(v.Mount+"/", map[string][]string{"help": {"1"}})
	require.NoError(t, err)
	defer answer.Body.Close()
	var help struct {
		OpenAPI struct {
			Paths map[string]any `json:"paths"`
		} `json:"openapi"`
	}
	require.NoError(t, answer.DecodeJSON(&help))
	require.Greater(t, len(help.OpenAPI.Paths), 30)
	for path := range help.OpenAPI.Paths {
		pattern := "^" + placeholder.ReplaceAllString(strings.Trim(path, "/"), `[^/]+`) + "/?$"
		require.True(t, slices.ContainsFunc(matrix, func(r reach) bool {
			return regexp.MustCompile(pattern).MatchString(r.path)
		}), "no row for %s", path)
	}
}

// A person is who Vault says, under whatever name they came: an operation belongs to
// the entity, and another entity of the same person is another requester.
func TestRoles_OperationsBelongToEntities(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{WithoutAgent: true})
	id := s.Ask(nil)
	path := fmt.Sprintf("%s/%s", s.Mount().Operations(), id)
	again, _ := s.Person("alice", "dbops-requester") // the same entity, another login
	_, err := again.Logical().Read(path)
	require.NoError(t, err)
	bob, _ := s.Person("bob", "dbops-requester")
	secret, err := bob.Logical().Read(path)
	require.NoError(t, err)
	require.Nil(t, secret)
	_, err = bob.Logical().Write(path+"/cancel", nil)
	refused(t, err, wire.CodeNotFound)
}
