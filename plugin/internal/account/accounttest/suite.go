// Package accounttest checks an account.Driver against the contract on a real
// server.
package accounttest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// Session is a login's open session.
type Session interface {
	// Alive asks the server something.
	Alive(ctx context.Context) bool
	Close()
}

// Server is a real server with a driver for it.
type Server struct {
	Driver account.Driver
	// Create are creation statements that make a login.
	Create []string
	// Bare are the same without quotes around the placeholders; nil when the product
	// has none to leave out.
	Bare []string
	// Fail is a statement the server refuses.
	Fail string
	// Refuses names of logins that the product cannot hold, and that Create must
	// therefore refuse; nil when it holds any.
	Refuses func(name string) bool
	// Login opens a session as a user would.
	Login func(ctx context.Context, username, password string) (Session, error)
	// Exists asks the server with an administrator's session.
	Exists func(t *testing.T, username string) bool
	// Unreachable is a driver for an address that takes connections and never
	// answers.
	Unreachable account.Driver
}

// Passwords that break what is not quoted.
func hostilePasswords() []string {
	return []string{
		`a'b`, `a"b`, `a\b`, `a\'b`, `'; DROP TABLE x; --`, `$$a$$`, "a\nb", `{{name}}`, `a%b{c}`, `/* a`, `ä€😀`, `E'\x41'`,
	}
}

// Run is the suite.
func Run(t *testing.T, open func(t *testing.T) Server) {
	server := open(t)
	driver := server.Driver
	until := func() time.Time { return time.Now().Add(time.Hour) }
	ctx := t.Context()

	create := func(t *testing.T, name, password string) {
		t.Helper()
		require.NoError(t, driver.Create(ctx, account.CreateRequest{
			Username: name, Password: wire.NewSecret(password), Expiration: until(), Statements: server.Create,
		}))
		t.Cleanup(func() {
			//nolint:usetesting // the test's context is over
			require.NoError(t, driver.End(context.Background(), account.EndRequest{Username: name}))
		})
	}

	t.Run("a login lives from create to end and its sessions with it", func(t *testing.T) {
		create(t, "suite-life", "secret-of-life")
		session, err := server.Login(ctx, "suite-life", "secret-of-life")
		require.NoError(t, err)
		defer session.Close()
		require.True(t, session.Alive(ctx))
		logins, err := driver.Logins(ctx, "suite-li")
		require.NoError(t, err)
		require.Len(t, logins, 1)
		require.Equal(t, "suite-life", logins[0].Name)
		require.True(t, logins[0].CanLogin)
		require.Empty(t, logins[0].Note)

		require.NoError(t, driver.End(ctx, account.EndRequest{Username: "suite-life"}))
		require.Eventually(t, func() bool { return !session.Alive(ctx) }, 2*time.Second, 20*time.Millisecond)
		require.False(t, server.Exists(t, "suite-life"))
		_, err = server.Login(ctx, "suite-life", "secret-of-life")
		require.Error(t, err)
		logins, err = driver.Logins(ctx, "suite-li")
		require.NoError(t, err)
		require.Empty(t, logins)
	})

	t.Run("a server that keeps records gives them back", func(t *testing.T) {
		if !driver.Keeps(server.Create) {
			return
		}
		const note = `it's "a" \ note; $$`
		expires := until().Truncate(time.Second)
		require.NoError(t, driver.Create(ctx, account.CreateRequest{
			Username: "suite-kept", Password: wire.NewSecret("secret-of-kept"), Expiration: expires, Statements: server.Create, Note: note,
		}))
		kept := func() []account.Login {
			logins, err := driver.Logins(ctx, "suite-kept")
			require.NoError(t, err)
			one, found, err := driver.Find(ctx, "suite-kept")
			require.NoError(t, err)
			require.Equal(t, len(logins) > 0, found)
			if found {
				require.Equal(t, logins[0], one)
			}
			return logins
		}
		require.Len(t, kept(), 1)
		require.Equal(t, note, kept()[0].Note)
		require.WithinDuration(t, expires, kept()[0].Expires, time.Second)
		later := expires.Add(time.Hour)
		require.NoError(t, driver.Renew(ctx, account.RenewRequest{Username: "suite-kept", Expiration: later}))
		require.WithinDuration(t, later, kept()[0].Expires, time.Second)
		require.NoError(t, driver.End(ctx, account.EndRequest{Username: "suite-kept"}))
		require.Empty(t, kept())
	})

	t.Run("a login is found by its whole name only", func(t *testing.T) {
		const name, longer = "suite-find", "suite-find-me"
		find := func(name string) bool {
			t.Helper()
			login, found, err := driver.Find(ctx, name)
			require.NoError(t, err, "%q", name)
			require.Equal(t, found, login.Name == name && login.CanLogin, "%q", name)
			return found
		}
		require.False(t, find(name))
		create(t, longer, "pw")
		require.False(t, find(name), "the beginning of another name")
		create(t, name, "pw")
		require.True(t, find(name))
		require.True(t, find(longer))
		for _, other := range []string{
			"", "suite-fin", "suite-find-", "Suite-Find", "SUITE-FIND", " suite-find", "suite-find ", "suite-find\t", "suite-find\x00", "suite-find\xff",
			"suite-fin_", "suite-fin%", "%", "*", "suite-fin?", `"suite-find"`, `'suite-find'`, `suite-find' OR ''='`, `suite-find\`, "su\u0131te-find",
			"suite-fi\u0301nd", "suite-find" + strings.Repeat(" ", 200), longer + strings.Repeat("x", 200),
		} {
			require.False(t, find(other), "%q", other)
		}
		require.NoError(t, driver.End(ctx, account.EndRequest{Username: name}))
		require.False(t, find(name))
		require.True(t, find(longer))
	})

	t.Run("ending what is gone is success", func(t *testing.T) {
		require.NoError(t, driver.End(ctx, account.EndRequest{Username: "suite-never"}))
		require.NoError(t, driver.End(ctx, account.EndRequest{Username: "suite-never", Statements: []string{server.Fail}}))
	})

	t.Run("renewing what is gone is not_found", func(t *testing.T) {
		err := driver.Renew(ctx, account.RenewRequest{Username: "suite-never", Expiration: until()})
		var e *account.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, wire.CodeNotFound, e.Code)
	})

	t.Run("a rotated login has the new password only", func(t *testing.T) {
		create(t, "suite-rotate", "secret-before")
		require.NoError(t, driver.Login(ctx, "suite-rotate", wire.NewSecret("secret-before")))
		for range 2 { // repeating it is fine
			require.NoError(t, driver.Rotate(ctx, account.RotateRequest{Username: "suite-rotate", Password: wire.NewSecret("secret-'after")}))
		}
		require.NoError(t, driver.Login(ctx, "suite-rotate", wire.NewSecret("secret-'after")))
		for _, wrong := range []string{"secret-before", "secret-'after "} {
			err := driver.Login(ctx, "suite-rotate", wire.NewSecret(wrong))
			var e *account.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, wire.CodeLoginRefused, e.Code)
			require.NotContains(t, err.Error(), "secret-")
		}
		session, err := server.Login(ctx, "suite-rotate", "secret-'after")
		require.NoError(t, err)
		session.Close()
	})

	t.Run("rotating what is gone is not_found", func(t *testing.T) {
		err := driver.Rotate(ctx, account.RotateRequest{Username: "suite-never", Password: wire.NewSecret("pw")})
		var e *account.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, wire.CodeNotFound, e.Code)
		require.False(t, e.Ambiguous)
	})

	t.Run("a failed create leaves nothing and shows nothing", func(t *testing.T) {
		err := driver.Create(ctx, account.CreateRequest{
			Username: "suite-fail", Password: wire.NewSecret("planted-secret"), Expiration: until(),
			Statements: append(append([]string{}, server.Create...), server.Fail),
		})
		require.Error(t, err)
		require.False(t, account.Ambiguous(err))
		require.NotContains(t, err.Error(), "planted")
		require.False(t, server.Exists(t, "suite-fail"))
	})

	t.Run("no password breaks out of a statement", func(t *testing.T) {
		for i, password := range hostilePasswords() {
			name := fmt.Sprintf("suite-hostile-%d", i)
			create(t, name, password)
			session, err := server.Login(ctx, name, password)
			require.NoError(t, err, "password %q", password)
			session.Close()
		}
	})

	t.Run("a name is kept byte for byte", func(t *testing.T) {
		for _, name := range []string{`suite "x"`, `suite 'x'`, `suite\x`, `suite;--`, `suite $$`, `Suite-ä`} {
			if server.Refuses != nil && server.Refuses(name) {
				err := driver.Create(ctx, account.CreateRequest{
					Username: name, Password: wire.NewSecret("pw"), Expiration: until(), Statements: server.Create,
				})
				var e *account.Error
				require.ErrorAs(t, err, &e, name)
				require.Equal(t, wire.CodeInvalid, e.Code, name)
				require.False(t, e.Ambiguous, name)
				require.NoError(t, driver.End(ctx, account.EndRequest{Username: name}), "what cannot be there is gone")
				continue
			}
			create(t, name, "pw")
			require.True(t, server.Exists(t, name), name)
			require.NoError(t, driver.Renew(ctx, account.RenewRequest{Username: name, Expiration: until()}))
			require.NoError(t, driver.End(ctx, account.EndRequest{Username: name}))
			require.False(t, server.Exists(t, name), name)
		}
	})

	t.Run("nothing hostile breaks out or goes lost", func(t *testing.T) { hostile(t, server, until) })

	t.Run("many at once", func(t *testing.T) {
		var group sync.WaitGroup
		errs := make(chan error, 64)
		for i := range 32 {
			group.Go(func() {
				name := fmt.Sprintf("suite-many-%d", i)
				errs <- driver.Create(ctx, account.CreateRequest{
					Username: name, Password: wire.NewSecret("pw"), Expiration: until(), Statements: server.Create,
				})
				errs <- driver.End(ctx, account.EndRequest{Username: name})
			})
		}
		group.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
	})

	t.Run("a server that does not answer is unreachable in time", func(t *testing.T) {
		began := time.Now()
		err := server.Unreachable.Create(ctx, account.CreateRequest{
			Username: "suite-dead", Password: wire.NewSecret("planted-secret"), Expiration: until(), Statements: server.Create,
		})
		require.True(t, account.Unreachable(err), "%v", err)
		require.False(t, account.Ambiguous(err))
		require.NotContains(t, err.Error(), "planted")
		require.Less(t, time.Since(began), 8*time.Second*race.Slowdown)
		_, err = server.Unreachable.Identity(ctx, "")
		require.True(t, account.Unreachable(err), "%v", err)
		_, found, err := server.Unreachable.Find(ctx, "suite-dead")
		require.True(t, account.Unreachable(err), "%v", err)
		require.False(t, found)
	})

	t.Run("identity", func(t *testing.T) {
		identity, err := driver.Identity(ctx, "")
		require.NoError(t, err)
		require.Equal(t, driver.Type(), identity.Engine)
		require.NotEmpty(t, identity.Server)
		require.NotEmpty(t, identity.DatabaseID)
		require.False(t, strings.Contains(identity.Version, " "), identity.Version)
		other, err := driver.Identity(ctx, "suite-no-such-database")
		require.NoError(t, err)
		require.Equal(t, identity.Server, other.Server)
		require.Empty(t, other.DatabaseID)
	})
}
