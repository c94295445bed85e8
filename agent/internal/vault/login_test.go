package vault

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// identity is one agent's AppRole on a real Vault, and its files.
type identity struct {
	t     *testing.T
	vault *testenv.VaultServer
	root  *api.Client
	dir   string
	role  string
}

func newIdentity(t *testing.T, v *testenv.VaultServer, name string, settings map[string]any) *identity {
	t.Helper()
	i := &identity{t: t, vault: v, root: v.Client, dir: t.TempDir(), role: "auth/approle/role/" + name}
	role := map[string]any{"token_period": "60s", "secret_id_num_uses": 1}
	for key, value := range settings {
		role[key] = value
	}
	i.write(i.role, role)
	id, err := i.root.Logical().Read(i.role + "/role-id")
	require.NoError(t, err)
	i.file("role_id", id.Data["role_id"])
	return i
}

func (i *identity) write(path string, data map[string]any) *api.Secret {
	i.t.Helper()
	secret, err := i.root.Logical().Write(path, data)
	require.NoError(i.t, err)
	return secret
}

func (i *identity) file(name string, content any) string {
	i.t.Helper()
	path := filepath.Join(i.dir, name)
	text, ok := content.(string)
	require.True(i.t, ok)
	require.NoError(i.t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

// wrapped puts a new wrapped secret-id in place and returns its wrapping token.
func (i *identity) wrapped(path string) string {
	i.t.Helper()
	wrapping, err := i.root.Clone()
	require.NoError(i.t, err)
	wrapping.SetToken(i.root.Token())
	wrapping.SetWrappingLookupFunc(func(string, string) string { return "60s" })
	secret, err := wrapping.Logical().Write(path, nil)
	require.NoError(i.t, err)
	i.file("secret_id", secret.WrapInfo.Token)
	return secret.WrapInfo.Token
}

func (i *identity) session(change func(a *AppRole)) (*Session, *Client) {
	i.t.Helper()
	client, err := Dial(Config{Address: i.vault.Address, WithoutEnvironmentToken: true})
	require.NoError(i.t, err)
	a := AppRole{
		Agent: filepath.Base(i.role), Mount: "approle", Wrapped: true,
		RoleIDFile: filepath.Join(i.dir, "role_id"), SecretIDFile: filepath.Join(i.dir, "secret_id"),
	}
	if change != nil {
		change(&a)
	}
	return NewSession(client, a, hclog.NewNullLogger()), client
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func works(ctx context.Context, c *Client) error {
	_, err := c.do(ctx, request{do: "look up own token", method: "GET", path: "auth/token/lookup-self"}, nil)
	return err
}

func realVault(t *testing.T) *testenv.VaultServer {
	t.Helper()
	v := testenv.Vault(t, testenv.VaultOptions{SkipPlugin: true})
	require.NoError(t, v.Client.Sys().EnableAuthWithOptions("approle", &api.EnableAuthOptions{Type: "approle"}))
	return v
}

// Logging in against a real Vault.
func TestSession_Login(t *testing.T) {
	t.Parallel()
	v := realVault(t)

	t.Run("wrapped secret-id, used once", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a1", nil)
		i.wrapped(i.role + "/secret-id")
		s, c := i.session(func(a *AppRole) { a.RemoveSecretID = true })
		require.NoError(t, s.Login(within(t, 30*time.Second)))
		require.NoError(t, works(within(t, 30*time.Second), c))
		require.NoFileExists(t, filepath.Join(i.dir, "secret_id"))
		require.NoError(t, s.Close(within(t, 30*time.Second)))
		require.Error(t, works(within(t, 30*time.Second), c), "the token ends with the session")
	})
	t.Run("opened by somebody else", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a2", nil)
		_, err := i.root.Logical().Unwrap(i.wrapped(i.role + "/secret-id"))
		require.NoError(t, err)
		s, _ := i.session(nil)
		require.ErrorContains(t, s.Login(within(t, 30*time.Second)), "somebody else")
	})
	t.Run("wrapped elsewhere", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a3", nil)
		newIdentity(t, v, "other", nil)
		i.wrapped("auth/approle/role/other/secret-id")
		s, _ := i.session(nil)
		require.ErrorContains(t, s.Login(within(t, 30*time.Second)), "do not trust it")
	})
	t.Run("another agent's role", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a4", nil)
		secret := i.write(i.role+"/secret-id", nil)
		i.file("secret_id", secret.Data["secret_id"])
		s, _ := i.session(func(a *AppRole) { a.Agent, a.Wrapped = "a5", false })
		require.ErrorContains(t, s.Login(within(t, 30*time.Second)), `the role of this role_id is "a4"`)
	})
	t.Run("file open to everybody", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a6", nil)
		i.wrapped(i.role + "/secret-id")
		require.NoError(t, os.Chmod(filepath.Join(i.dir, "secret_id"), 0o644))
		s, _ := i.session(nil)
		require.ErrorContains(t, s.Login(within(t, 30*time.Second)), "open to everybody")
	})
	t.Run("token kept for the next start", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a7", nil)
		i.wrapped(i.role + "/secret-id")
		memory, err := os.MkdirTemp("/dev/shm", "dbops-test-")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(memory)) })
		keep := func(a *AppRole) { a.TokenFile, a.RemoveSecretID = filepath.Join(memory, "token"), true }
		first, _ := i.session(keep)
		require.NoError(t, first.Login(within(t, 30*time.Second)))
		require.NoError(t, first.Close(within(t, 30*time.Second)))
		second, c := i.session(keep)
		require.NoError(t, second.Login(within(t, 30*time.Second)), "without any secret-id")
		require.NoError(t, works(within(t, 30*time.Second), c))
	})
	t.Run("a token is not kept on a disk", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a8", nil)
		i.wrapped(i.role + "/secret-id")
		s, _ := i.session(func(a *AppRole) { a.TokenFile = "/proc/token" })
		require.ErrorContains(t, s.Login(within(t, 30*time.Second)), "not a file system in memory")
	})
	t.Run("renewed, and logged in again after the token was ended", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a9", map[string]any{"token_period": "1s", "secret_id_num_uses": 0})
		secret := i.write(i.role+"/secret-id", nil)
		i.file("secret_id", secret.Data["secret_id"])
		s, c := i.session(func(a *AppRole) { a.Wrapped = false })
		require.NoError(t, s.Login(within(t, 30*time.Second)))
		i.write(i.role, map[string]any{"token_period": "60s"})
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		defer func() { stop(); <-ended }()
		<-time.After(2 * time.Second)
		require.NoError(t, works(ctx, c), "it lives longer than its first ttl")
		_, err := c.do(ctx, request{do: "end own token", method: "PUT", path: "auth/token/revoke-self"}, nil)
		require.NoError(t, err)
		require.Error(t, works(ctx, c), "which wakes the session")
		require.Eventually(t, func() bool { return works(ctx, c) == nil }, 20*time.Second, 100*time.Millisecond)
	})
	t.Run("each login and each renewal is counted", func(t *testing.T) {
		t.Parallel()
		i := newIdentity(t, v, "a10", map[string]any{"secret_id_num_uses": 0})
		s, c := i.session(func(a *AppRole) { a.Wrapped = false })
		counts := &tally{}
		c.observer = counts
		i.file("secret_id", "wrong")
		require.Error(t, s.Login(within(t, 30*time.Second)))
		i.file("secret_id", i.write(i.role+"/secret-id", nil).Data["secret_id"])
		require.NoError(t, s.Login(within(t, 30*time.Second)))
		require.NoError(t, s.renew(within(t, 30*time.Second)))
		require.NoError(t, s.Close(within(t, 30*time.Second)))
		require.Error(t, s.renew(within(t, 30*time.Second)))
		require.Equal(t, []wire.Code{wire.CodeInvalid, ""}, counts.logins)
		require.Equal(t, []wire.Code{"", wire.CodeUnavailable}, counts.renewals)
	})
}

// Whether events are recorded is read from a real Vault.
func TestWork_AuditDevices(t *testing.T) {
	t.Parallel()
	v := testenv.Vault(t, testenv.VaultOptions{})
	client, err := Dial(Config{Address: v.Address, Mount: v.Mount, Token: wire.NewSecret(v.RootToken)})
	require.NoError(t, err)
	work := NewWork(client, "a1")
	count, err := work.AuditDevices(within(t, 30*time.Second))
	require.NoError(t, err)
	require.Equal(t, 1, count)

	_, err = v.Client.Logical().Write("sys/mounts/"+v.Mount+"/tune", map[string]any{"audit_non_hmac_request_keys": []string{"fence"}})
	require.NoError(t, err)
	_, err = work.AuditDevices(within(t, 30*time.Second))
	require.Equal(t, wire.CodeAuditUnavailable, CodeOf(err))
	require.ErrorContains(t, err, wire.EventsKey)
	var hidden *wire.Error
	require.ErrorAs(t, err, &hidden)
	require.Equal(t, wire.AuditTuning, hidden.Field)

	devices, err := v.Client.Sys().ListAudit()
	require.NoError(t, err)
	for path := range devices {
		require.NoError(t, v.Client.Sys().DisableAudit(path))
	}
	_, err = work.AuditDevices(within(t, 30*time.Second))
	require.Equal(t, wire.CodeAuditUnavailable, CodeOf(err))

	stranger, err := Dial(Config{Address: v.Address, Mount: v.Mount, WithoutEnvironmentToken: true})
	require.NoError(t, err)
	_, err = NewWork(stranger, "a1").AuditDevices(within(t, 30*time.Second))
	require.Equal(t, wire.CodeAuditUnavailable, CodeOf(err), "who may not look does not know")
}
