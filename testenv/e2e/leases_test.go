package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

const (
	// leaseTTL is short, for an account whose request died with Vault is known by
	// its record alone and goes when its time is over.
	leaseTTL     = 20 * time.Second
	leaseClients = 8
	// leftFor is how long after the last recovery something may be left.
	leftFor = time.Minute
)

// leaseLoad gets logins, logs in with each, and revokes most of them.
type leaseLoad struct {
	v *testenv.VaultServer
	p *testenv.PostgresServer

	wanted   int64
	answered atomic.Int64
	refused  atomic.Int64
	// over ends the load when the test has failed.
	over context.Context //nolint:containedctx // the life of the load

	mu    sync.Mutex
	wrong []string
	// users are all that were answered.
	users map[string]bool
}

const createLogin = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`

// issuing connects prod to the server, for all roles. The returned function writes
// below the mount.
func issuing(t *testing.T, v *testenv.VaultServer, p *testenv.PostgresServer) (write func(path string, data map[string]any)) {
	t.Helper()
	write = func(path string, data map[string]any) {
		t.Helper()
		_, err := v.Client.Logical().Write(v.Mount+"/"+path, data)
		require.NoError(t, err, path)
	}
	p.Exec("postgres", `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD 'root-password'`)
	write("config/prod", map[string]any{
		"plugin_name": "postgresql-database-plugin", "connection_url": p.ConnectionURL("postgres"),
		"username": "dbops_root", "password": "root-password", "allowed_roles": "*",
	})
	return write
}

// Leases come and go while the database restarts three times and Vault is killed
// twice. LEASES says how many (default 1000).
func TestLeases_Crashes(t *testing.T) {
	wanted := int64(1000)
	if text := os.Getenv("LEASES"); text != "" {
		var err error
		wanted, err = strconv.ParseInt(text, 10, 64)
		require.NoError(t, err, "LEASES")
	}
	v := testenv.Vault(t, testenv.VaultOptions{Raft: true, SkipAudit: true})
	p := testenv.Postgres(t, testenv.PostgresOptions{Durable: true, Weight: 16})
	write := issuing(t, v, p)
	write("roles/app", map[string]any{
		"db_name": "prod", "creation_statements": createLogin, "default_ttl": leaseTTL.String(), "max_ttl": leaseTTL.String(),
	})

	over, end := context.WithCancel(t.Context())
	l := &leaseLoad{v: v, p: p, wanted: wanted, over: over, users: map[string]bool{}}
	var clients sync.WaitGroup
	for range leaseClients {
		clients.Go(l.client)
	}
	t.Cleanup(func() { end(); clients.Wait() })

	crashes := []func(){
		func() { p.Kill(); p.Start() },
		func() { v.Kill(); v.Restart() },
		func() { p.Stop(); time.Sleep(2 * time.Second); p.Start() },
		func() { v.Kill(); v.Restart() },
		func() { p.Kill(); p.Start() },
	}
	for i, crash := range crashes {
		l.await(t, wanted*int64(i+1)/int64(len(crashes)+1))
		crash()
		t.Logf("crash %d is over after %d logins, %d requests were refused so far", i+1, l.answered.Load(), l.refused.Load())
	}
	recovered := time.Now()
	l.await(t, wanted)
	clients.Wait()
	require.Empty(t, l.wrong, "logins that were answered and did not let in")
	loaded := time.Now()

	testenv.Await(t, "no account to be left", leftFor, func() error {
		if accounts := p.Value("postgres", `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dbops-%'`); accounts != "0" {
			return fmt.Errorf("%s accounts are left", accounts)
		}
		left, err := v.Client.Logical().List(v.Mount + "/revocations")
		if err != nil {
			return err
		}
		if left != nil && left.Data["keys"] != nil {
			return fmt.Errorf("revocations are left: %v", left.Data["keys"])
		}
		return nil
	})
	t.Logf("%d logins, %d requests refused; nothing is left %s after the last recovery and %s after the load", wanted,
		l.refused.Load(), time.Since(recovered).Round(time.Second), time.Since(loaded).Round(time.Second))
	irrevocable, err := v.Client.Logical().ReadWithData("sys/leases/count", map[string][]string{"type": {"irrevocable"}})
	require.NoError(t, err)
	require.Equal(t, "0", fmt.Sprint(irrevocable.Data["lease_count"]), "irrevocable leases")
}

// await waits until so many logins were answered.
func (l *leaseLoad) await(t *testing.T, count int64) {
	t.Helper()
	testenv.Await(t, fmt.Sprintf("%d logins", count), time.Minute+time.Duration(l.wanted)*20*time.Millisecond, func() error {
		if answered := l.answered.Load(); answered < count {
			return fmt.Errorf("%d were answered, %d requests refused", answered, l.refused.Load())
		}
		return nil
	})
}

func (l *leaseLoad) client() {
	client := l.v.NewClient(l.v.RootToken)
	for l.over.Err() == nil && l.answered.Load() < l.wanted {
		secret, err := client.Logical().ReadWithContext(l.over, l.v.Mount+"/creds/app")
		if err != nil || secret == nil {
			l.refused.Add(1)
			time.Sleep(20 * time.Millisecond) // one of both is down
			continue
		}
		expires := time.Now().Add(leaseTTL)
		l.answer(fmt.Sprint(secret.Data["username"]))
		count := l.answered.Add(1)
		l.logIn(secret, expires)
		if count%5 == 0 {
			continue // ends by itself
		}
		l.revoke(client, secret.LeaseID, expires)
	}
}

// answer notes a login that was answered; none is answered twice.
func (l *leaseLoad) answer(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[user] {
		l.wrong = append(l.wrong, user+": answered twice")
	}
	l.users[user] = true
}

// logIn uses the login while its lease lives, again and again as long as the
// server does not answer.
func (l *leaseLoad) logIn(secret *api.Secret, expires time.Time) {
	user, password := fmt.Sprint(secret.Data["username"]), fmt.Sprint(secret.Data["password"])
	for time.Now().Before(expires) && l.over.Err() == nil {
		ctx, cancel := context.WithTimeout(l.over, 5*time.Second)
		conn, err := pgx.Connect(ctx, l.p.DSNFor(user, password, "postgres"))
		if err == nil {
			err = conn.Close(ctx)
		}
		cancel()
		var refusal *pgconn.PgError
		switch {
		case err == nil:
			return
		case errors.As(err, &refusal) && strings.HasPrefix(refusal.Code, "28"):
			l.mu.Lock()
			l.wrong = append(l.wrong, user+": "+refusal.Message)
			l.mu.Unlock()
			return
		}
		time.Sleep(50 * time.Millisecond) // the server is down
	}
}

// revoke repeats until Vault has taken it.
func (l *leaseLoad) revoke(client *api.Client, lease string, expires time.Time) {
	for time.Now().Before(expires) && l.over.Err() == nil {
		if _, err := client.Logical().WriteWithContext(l.over, "sys/leases/revoke", map[string]any{"lease_id": lease}); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond) // Vault is down
	}
}
