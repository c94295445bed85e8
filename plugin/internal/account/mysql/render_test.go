package mysql

import (
	"context"
	"encoding/hex"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	client "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/dialect"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func splitLines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func unhex(text string) string {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return text
	}
	return string(raw)
}

// A real server must read every value back as it was, in every mode and quoting.
func FuzzRenderMySQL(f *testing.F) {
	for _, value := range []string{
		"", "plain", `'`, `"`, "`", `\`, `\'`, `''`, `\\'`, "a\nb", "; DROP USER x; -- ", "/* x */", "/*! 1 */", "# x\n'", "ä€😀", "{{v}}", "\x1a", "\xbf'", `%_`, "--\x01",
	} {
		f.Add(value)
	}
	m := testenv.MariaDB(f, testenv.MariaDBOptions{})
	type target struct {
		driver *Driver
		mode   dialect.MySQLMode
	}
	var targets []target
	for _, parameters := range []string{"", "?sql_mode=%27NO_BACKSLASH_ESCAPES%27", "?sql_mode=%27ANSI_QUOTES%27"} {
		driver, err := New(Config{URL: m.ConnectionURL("") + parameters, Username: m.User, Password: wire.NewSecret(m.Password)})
		require.NoError(f, err)
		f.Cleanup(driver.Close)
		targets = append(targets, target{driver, driver.mode})
	}
	var once sync.Mutex
	f.Fuzz(func(t *testing.T, value string) {
		once.Lock()
		defer once.Unlock()
		for _, target := range targets {
			text := `SELECT HEX('{{v}}'), HEX({{v}}), HEX('a{{v}}'), HEX(CONCAT({{v}},{{v}})), 'end' AS ` + "`{{one}}`" + ` /* {{one}} */ -- {{one}}`
			if !target.mode.AnsiQuotes {
				text = strings.Replace(text, "'end'", `HEX("{{v}}")`, 1)
			}
			statements, err := dialect.RenderMySQL(text, map[string]dialect.Value{"v": {Text: value}, "one": {Text: "x"}}, target.mode)
			if !utf8.ValidString(value) || strings.Contains(value, "\x00") {
				require.Error(t, err)
				continue
			}
			require.NoError(t, err)
			require.Len(t, statements, 1)
			var columns [5]string
			err = target.driver.with(context.Background(), "test", account.StatementTimeout, func(ctx context.Context, s *session) error {
				return s.conn.QueryRowContext(ctx, statements[0]).Scan(&columns[0], &columns[1], &columns[2], &columns[3], &columns[4])
			})
			require.NoError(t, err, statements[0])
			want := strings.ToUpper(hex.EncodeToString([]byte(value)))
			require.Equal(t, want, columns[0])
			require.Equal(t, want, columns[1])
			require.Equal(t, "61"+want, columns[2])
			require.Equal(t, want+want, columns[3])
			if !target.mode.AnsiQuotes {
				require.Equal(t, want, columns[4])
			}
		}
	})
}

// What we read in a connection string is what the client library connects to.
func FuzzDSN(f *testing.F) {
	for _, text := range []string{
		"{{username}}:{{password}}@tcp(127.0.0.1:3306)/", "u:p@tcp(h:1)/d?tls=true", "u@unix(/tmp/x.sock)/d", "/", "@/", "u:p@/d", "u:p/@x:y@tcp([::1]:9)/a%2Fb", "u:p@tcp(h)/d?tls=skip-verify&x=/",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ours, err := dialect.ParseMySQLDSN(text)
		if err != nil {
			require.NotContains(t, err.Error(), "planted")
			return
		}
		theirs, err := client.ParseDSN(text)
		if err != nil {
			return
		}
		require.Equal(t, theirs.DBName, ours.Database)
		switch theirs.Net {
		case "unix":
			require.Equal(t, theirs.Addr, ours.Host)
		case "tcp":
			require.True(t, strings.Contains(theirs.Addr, ours.Host), "%q %q", theirs.Addr, ours.Host)
		}
		require.Equal(t, theirs.Passwd != "" && theirs.Passwd != "{{password}}", ours.HasPassword)
		require.Equal(t, theirs.TLS != nil, ours.SSLMode != "disable")
		if ours.HasPassword {
			again, err := client.ParseDSN(dialect.RedactMySQLDSN(text))
			require.NoError(t, err)
			require.Equal(t, "xxxxx", again.Passwd)
		}
	})
}
