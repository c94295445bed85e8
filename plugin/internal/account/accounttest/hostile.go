package accounttest

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// hostilePieces are what ends, begins or escapes a quote, a comment, a statement or
// a text anywhere.
func hostilePieces() []string {
	return []string{
		`'`, `''`, `"`, `""`, "`", `\`, `\'`, `\"`, `$$`, `$a$`, `;`, `--`, `-- `, `/*`, `*/`, `/*!`, `#`, "\n", "\r\n", "\t", "\x1a",
		`E'`, `U&'`, `N'`, `{{name}}`, `{{password}}`, `%`, `_`, ` `, "\x00", "\xff", `ä`, `😀`, "a", `' OR ''='`,
		"a\u0308", "\ufb01", "\u00a0", "\u00ad", // what SASLprep and PRECIS change
		`'; DROP ROLE "suite-witness"; --`, `'; DROP USER 'suite-witness'@'%'; -- `, "\r\nACL DELUSER suite-witness\r\n", `", "+@all`,
	}
}

// hostileMixes is how many values beside the pieces are made at random.
const hostileMixes = 12

// HostileValues are all hostile pieces and some random mixes of them. The seed is
// logged; a failure names its value.
func HostileValues(t *testing.T) []string {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("hostile values: seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // protects nothing
	pieces := hostilePieces()
	values := append([]string{}, pieces...)
	for range hostileMixes {
		var b strings.Builder
		for range 2 + random.IntN(4) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		values = append(values, b.String())
	}
	return values
}

// hostile gives every value to the server as a password, old and new, and as a
// name. Either it is kept to the byte or it is refused and nothing was made; and
// nobody else on the server notices.
func hostile(t *testing.T, server Server, until func() time.Time) {
	ctx, driver := t.Context(), server.Driver
	witness := account.CreateRequest{
		Username: "suite-witness", Password: wire.NewSecret("of-the-witness"), Expiration: until(), Statements: server.Create,
	}
	require.NoError(t, driver.Create(ctx, witness))
	before, err := driver.Logins(ctx, "")
	require.NoError(t, err)
	refused := func(err error, what string) {
		t.Helper()
		var e *account.Error
		require.ErrorAs(t, err, &e, what)
		require.Equal(t, wire.CodeInvalid, e.Code, "%s: %s", what, err)
		require.False(t, e.Ambiguous, what)
	}
	// has asks the driver: asking as [Server.Exists] does takes some servers long.
	has := func(name string) bool {
		t.Helper()
		login, found, err := driver.Find(ctx, name)
		require.NoError(t, err, "%q", name)
		if found {
			require.Equal(t, name, login.Name)
		}
		listed, err := driver.Logins(ctx, "") // no hostile name in the question
		require.NoError(t, err)
		require.Equal(t, found, slices.ContainsFunc(listed, func(l account.Login) bool { return l.Name == name }), "%q", name)
		return found
	}
	enter := func(name, password, what string) {
		t.Helper()
		session, err := server.Login(ctx, name, password)
		require.NoError(t, err, what)
		session.Close()
	}
	values := HostileValues(t)
	for i := 0; i < len(values); i += race.Stride {
		value, statements := values[i], server.Create
		if i%2 == 1 && server.Bare != nil {
			statements = server.Bare
		}
		const name = "suite-hostile"
		request := account.CreateRequest{Username: name, Password: wire.NewSecret(value), Expiration: until(), Statements: statements}
		what := strings.ToValidUTF8(strings.ReplaceAll(value, "\x00", "<NUL>"), "<invalid>")
		if err := driver.Create(ctx, request); err != nil {
			refused(err, what)
			require.False(t, has(name), what)
		} else {
			enter(name, value, what)
			_, err := server.Login(ctx, name, value+"x")
			require.Error(t, err, what)
			require.NoError(t, driver.End(ctx, account.EndRequest{Username: name}), what)
		}
		if err := driver.Rotate(ctx, account.RotateRequest{Username: "suite-witness", Password: wire.NewSecret(value)}); err != nil {
			refused(err, what)
		} else {
			enter("suite-witness", value, what)
		}

		require.False(t, has("h-"+value), what)
		if len(value) > 50 {
			continue // longer than some servers take for a name
		}
		request.Username, request.Password = "h-"+value, wire.NewSecret("pw")
		if err := driver.Create(ctx, request); err != nil {
			refused(err, what)
			continue
		}
		require.True(t, has(request.Username), what)
		require.NoError(t, driver.Renew(ctx, account.RenewRequest{Username: request.Username, Expiration: until()}), what)
		require.NoError(t, driver.End(ctx, account.EndRequest{Username: request.Username}), what)
		require.False(t, has(request.Username), what)
	}
	after, err := driver.Logins(ctx, "")
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, driver.End(ctx, account.EndRequest{Username: "suite-witness"}))
}
