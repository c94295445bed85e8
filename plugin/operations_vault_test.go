package plugin

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// vaultDesk is a real Vault with our plugin as its own process, a requester and an
// agent who log in as they would.
type vaultDesk struct {
	t     *testing.T
	v     *testenv.VaultServer
	db    *testenv.PostgresServer
	agent *api.Client
	alice *api.Client
	chain *testChain
}

func newVaultDesk(t *testing.T) *vaultDesk {
	t.Helper()
	return newVaultDeskOn(t, testenv.VaultOptions{Raft: true})
}

func newVaultDeskOn(t *testing.T, options testenv.VaultOptions) *vaultDesk {
	t.Helper()
	db := database(t)
	db.CreateDatabase("shop")
	v := testenv.Vault(t, options)
	d := &vaultDesk{t: t, v: v, db: db, chain: &testChain{agent: "a1", epoch: 1}}

	d.put(v.Client, "sys/policies/acl/everything", "policy", `path "*" { capabilities = ["create","read","update","delete","list","sudo"] }`)
	d.put(v.Client, "sys/auth/approle", "type", "approle")
	d.put(v.Client, "sys/auth/userpass", "type", "userpass")
	d.put(v.Client, "auth/approle/role/a1", "token_policies", "everything")
	d.put(v.Client, "auth/userpass/users/alice", "password", "pw", "token_policies", "everything")
	role := d.get(v.Client, "auth/approle/role/a1/role-id")["role_id"]
	secret := d.put(v.Client, "auth/approle/role/a1/secret-id").Data["secret_id"]
	login := d.put(v.Client, "auth/approle/login", "role_id", role, "secret_id", secret)
	d.agent = v.NewClient(login.Auth.ClientToken)
	user := d.put(v.Client, "auth/userpass/login/alice", "password", "pw")
	d.alice = v.NewClient(user.Auth.ClientToken)
	mounts, err := v.Client.Sys().ListAuth()
	require.NoError(t, err)

	for name, database := range map[string]string{"prod": "postgres", "staging": "shop"} {
		d.put(v.Client, "dbops/config/"+name, "plugin_name", postgresPluginName, "connection_url", db.ConnectionURL(database),
			"username", "dbops_root", "password", rootPassword, "allowed_roles", "*")
		d.put(v.Client, "dbops/roles/"+name, "db_name", name, "creation_statements",
			`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE dbops_read;`)
		d.put(v.Client, "dbops/connections/"+name, "purposes", "inspect="+name+",read="+name+",write="+name, "operations_only", true)
	}
	d.put(v.Client, "dbops/policies/dev", "entities", user.Auth.EntityID, "sources", "prod", "targets", "staging", "allowed_operations", "clone", "max_operations_per_hour", 2)
	d.put(v.Client, "dbops/agents/a1", "accessor", mounts["approle/"].Accessor)
	return d
}

func fieldsOf(fields []any) map[string]any {
	data := map[string]any{}
	for i := 0; i+1 < len(fields); i += 2 {
		if name, ok := fields[i].(string); ok {
			data[name] = fields[i+1]
		}
	}
	return data
}

func (d *vaultDesk) put(c *api.Client, path string, fields ...any) *api.Secret {
	d.t.Helper()
	s, err := c.Logical().Write(path, fieldsOf(fields))
	require.NoError(d.t, err, path)
	return s
}

func (d *vaultDesk) get(c *api.Client, path string) map[string]any {
	d.t.Helper()
	s, err := c.Logical().Read(path)
	require.NoError(d.t, err, path)
	require.NotNil(d.t, s, path)
	return s.Data
}

// refused checks status and code as they leave Vault, and that the client did not
// repeat the request by itself.
func (d *vaultDesk) refused(code wire.Code, c *api.Client, path string, fields ...any) wire.Error {
	d.t.Helper()
	_, err := c.Logical().Write(path, fieldsOf(fields))
	require.Error(d.t, err, path)
	var answer *api.ResponseError
	require.ErrorAs(d.t, err, &answer)
	require.Equal(d.t, code.Info().HTTP, answer.StatusCode, "%v", err)
	parsed := wire.ParseError(err.Error())
	require.NotNil(d.t, parsed, "%v", err)
	require.Equal(d.t, code, parsed.Code, "%v", err)
	return *parsed
}

func (d *vaultDesk) poll(held ...string) wire.PollResponse {
	d.t.Helper()
	return decode[wire.PollResponse](d.t, d.put(d.agent, "dbops/agents/a1/poll",
		"version", 1, "boot", "b", "free_slots", 1, "held", held, "progress", []string{}, "audit_devices", "1").Data)
}

// killPlugin ends the plugin's process and waits until Vault has started another.
func (d *vaultDesk) killPlugin() {
	d.t.Helper()
	require.NoError(d.t, syscall.Kill(d.v.PluginPID(), syscall.SIGKILL))
	require.Eventually(d.t, func() bool {
		_, err := d.v.Client.Logical().Read("dbops/info")
		return err == nil
	}, 30*time.Second, 50*time.Millisecond)
}

// The work protocol through a real Vault: the agent is bound by its AppRole alias,
// refusals keep their status, accounts are leases on real logins that end by
// revoke-prefix, events stand readable in the audit file, and killing the plugin's
// process between any two steps loses nothing.
func TestVault_WorkProtocol(t *testing.T) {
	t.Parallel()
	d := newVaultDesk(t)
	root := d.v.Client

	d.refused(wire.CodeNoIdentity, root, "dbops/clone/prod/staging")
	d.refused(wire.CodeDenied, d.agent, "dbops/clone/prod/staging")
	require.Contains(t, d.refused(wire.CodeNotYourOperation, d.alice, "dbops/agents/a1/poll", "version", 1).Reason, "a1")
	_, err := d.alice.Logical().Read("dbops/creds/prod")
	require.Equal(t, wire.CodeDenied, wire.ParseError(err.Error()).Code)

	op := decode[wire.Operation](t, d.put(d.alice, "dbops/clone/prod/staging", "request_id", "r1").Data)
	require.Equal(t, op.ID, d.put(d.alice, "dbops/clone/prod/staging", "request_id", "r1").Data["id"])
	d.refused(wire.CodeRequestIDReused, d.alice, "dbops/clone/prod/staging", "request_id", "r1", "jobs", "4")
	second := d.put(d.alice, "dbops/clone/prod/staging").Data["id"].(string)
	limited := d.refused(wire.CodeRateLimited, d.alice, "dbops/clone/prod/staging")
	require.Equal(t, "max_operations_per_hour", limited.Rule)
	require.False(t, limited.RetryAt.IsZero())
	d.put(d.alice, "dbops/operations/"+second+"/cancel")

	d.killPlugin()
	polled := d.poll()
	require.Len(t, polled.Claims, 1)
	require.Equal(t, op.ID, polled.Claims[0].OperationID)
	d.killPlugin()
	require.Equal(t, polled.Claims[0].Fence, d.poll().Claims[0].Fence)

	mine := "dbops/agents/a1/operations/" + op.ID
	inspect := d.put(d.agent, mine+"/accounts/inspect/source", "fence", "1")
	require.Equal(t, 300, inspect.LeaseDuration)
	require.False(t, inspect.Renewable)
	require.NotEmpty(t, inspect.Data["password"])
	d.refused(wire.CodeConflict, d.agent, mine+"/accounts/source", "fence", "1")

	text, shape := planText(func(h *wire.ShapeHead, _ *wire.Estimates) {
		h.Source.Database, h.Target.Database = "postgres", "shop"
		h.Source.Server = d.db.Value("postgres", "select system_identifier from pg_control_system()")
		h.Target.Server = h.Source.Server
	})
	plan := decode[wire.PlanResponse](t, d.put(d.agent, mine+"/plan", "fence", "1", "part", "0", "parts", "1", "text", text).Data)
	require.Equal(t, wire.StateRunning, plan.State)
	fence := plan.Claim.Fence
	d.refused(wire.CodeStaleClaim, d.agent, mine+"/accounts/source", "fence", "1")
	d.killPlugin()

	account := d.put(d.agent, mine+"/accounts/source", "fence", fence)
	require.Equal(t, 900, account.LeaseDuration)
	d.put(d.agent, mine+"/accounts/target", "fence", fence)
	renewed := d.put(d.agent, "sys/leases/renew", "lease_id", account.LeaseID, "increment", "86400s")
	require.LessOrEqual(t, renewed.LeaseDuration, 901, "a lease must not outlive its login")
	d.put(d.agent, mine+"/plan", "fence", fence, "part", "0", "parts", "1", "text", shape)

	first := d.chain.event(op, step(wire.EventStepStarted, wire.StepVerify, "started"))
	d.put(d.agent, mine+"/events", wire.EventsKey, []string{first})
	d.killPlugin()
	d.put(d.agent, mine+"/events", wire.EventsKey, []string{first})
	switched := d.chain.event(op, step(wire.EventStepFinished, wire.StepSwitch, "success"))
	d.put(d.agent, mine+"/events", wire.EventsKey, []string{switched})
	d.refused(wire.CodeChainBroken, d.agent, mine+"/events", wire.EventsKey, []string{first})
	require.Equal(t, "verifying", d.get(d.alice, "dbops/operations/"+op.ID)["state"])

	_, err = d.agent.Logical().Write("sys/leases/revoke-prefix/"+mine, map[string]any{"sync": true})
	require.NoError(t, err)
	finished := d.put(d.agent, mine+"/finish", "fence", fence, "outcome", "succeeded", "rows", "10", "report", "{}")
	require.Equal(t, "succeeded", finished.Data["state"])
	d.killPlugin()
	require.Equal(t, "succeeded", d.get(d.alice, "dbops/operations/"+op.ID)["state"])
	require.Equal(t, d.chain.head, d.poll().Chain.Head)
	listed, err := d.alice.Logical().List("dbops/operations")
	require.NoError(t, err)
	require.Len(t, listed.Data["keys"], 2)
	found, err := d.alice.Logical().ReadWithData("dbops/operations", map[string][]string{"state": {"succeeded"}})
	require.NoError(t, err)
	require.Len(t, found.Data["operations"], 1)

	counts := map[string]int{}
	for _, raw := range d.v.AuditEntries() {
		var entry struct {
			Type, Error string
			Request     struct {
				Path string
				Data map[string]any
			}
		}
		require.NoError(t, json.Unmarshal(raw, &entry))
		require.NotContains(t, string(raw), account.Data["password"])
		if entry.Type == "response" && entry.Request.Path == mine+"/events" && entry.Error == "" {
			for _, e := range entry.Request.Data[wire.EventsKey].([]any) {
				counts[e.(string)]++
			}
		}
		if strings.HasSuffix(entry.Request.Path, "/clone/prod/staging") && strings.Contains(entry.Error, "rate_limited") {
			require.Contains(t, entry.Error, `rule="max_operations_per_hour"`, "a refusal stands in clear")
			counts["refusal"]++
		}
	}
	require.Equal(t, map[string]int{first: 2, switched: 1, "refusal": 1}, counts)
}

// Polls of many agents neither wait for each other nor for a request that does.
func TestVault_ManyPolls(t *testing.T) {
	t.Parallel()
	d := newVaultDesk(t)
	const polls = 400
	begin := time.Now()
	errs := make(chan error, polls)
	slots := make(chan struct{}, 20)
	for range polls {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			_, err := d.agent.Logical().Write("dbops/agents/a1/poll", map[string]any{"version": 1, "free_slots": 0, "audit_devices": "1"})
			errs <- err
		}()
	}
	for range polls {
		require.NoError(t, <-errs)
	}
	t.Log(strconv.Itoa(polls), "polls took", time.Since(begin).String())
	require.Less(t, time.Since(begin), 60*time.Second)
	resp, err := d.agent.Logical().ReadRaw("dbops/agents/a1")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
}
