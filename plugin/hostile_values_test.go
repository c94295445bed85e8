package plugin

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	client "github.com/go-sql-driver/mysql"
	"github.com/hashicorp/vault/sdk/logical"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account/accounttest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A password policy and a display name can hold anything: what creds answers logs
// in as it stands, or the request is refused with a 4xx and nothing is made.
func TestCreds_HostilePolicyAndDisplayName(t *testing.T) {
	t.Parallel()
	p, server, r := database(t), mariadb(t), testenv.Redis(t, testenv.RedisOptions{})
	for name, test := range map[string]struct {
		config, role map[string]any
		enter        func(username, password string) error
	}{
		"PostgreSQL": {
			config: map[string]any{
				"plugin_name": postgresPluginName, "connection_url": p.ConnectionURL("postgres"), "username": "dbops_root", "password": rootPassword,
			},
			role: map[string]any{"creation_statements": createMember},
			enter: func(username, password string) error {
				_, err := login(t, p, username, password)
				return err
			},
		},
		"MariaDB": {
			config: map[string]any{
				"plugin_name": mysqlPluginName, "connection_url": server.ConnectionURL(""), "username": "dbops_root", "password": rootPassword,
			},
			role: map[string]any{"creation_statements": createMySQLUser},
			enter: func(username, password string) error {
				config := client.NewConfig()
				config.User, config.Passwd, config.Net, config.Addr, config.Logger = username, password, "tcp", server.Address(), &client.NopLogger{}
				connector, err := client.NewConnector(config)
				require.NoError(t, err)
				db := sql.OpenDB(connector)
				defer func() { _ = db.Close() }()
				return db.PingContext(t.Context())
			},
		},
		"Redis": {
			config: redisConfig(r, nil),
			role:   map[string]any{"creation_statements": `["~*", "+@read", "+ping"]`},
			enter: func(username, password string) error {
				user := goredis.NewClient(&goredis.Options{Addr: fmt.Sprintf("%s:%d", r.Host, r.Port), Username: username, Password: password})
				defer func() { _ = user.Close() }()
				return user.Ping(t.Context()).Err()
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMount(t, &logical.InmemStorage{})
			var value string
			m.System().(*logical.StaticSystemView).SetPasswordPolicy("hostile", func() (string, error) { return value, nil })
			test.config["allowed_roles"], test.config["password_policy"] = "*", "hostile"
			test.config["username_template"] = "{{.DisplayName}}{{random 12}}"
			m.must(logical.CreateOperation, "config/prod", test.config)
			test.role["db_name"] = "prod"
			m.must(logical.CreateOperation, "roles/app", test.role)
			made := 0
			for _, value = range accounttest.HostileValues(t) {
				response, err := m.HandleRequest(context.Background(), &logical.Request{
					Operation: logical.ReadOperation, Path: "creds/app", Storage: m.storage, DisplayName: value, MountPoint: "dbops/",
				})
				if err != nil {
					coded, ok := err.(logical.HTTPCodedError) //nolint:errorlint // it must be bare: Vault does not unwrap it
					require.True(t, ok, "%q: %v", value, err)
					require.Equal(t, 400, coded.Code(), "%q: %v", value, err)
					require.Empty(t, keys(t, m.storage, prefixAccount), "%q", value)
					continue
				}
				made++
				username, password := response.Data["username"].(string), response.Data["password"].(string)
				require.Equal(t, value, password)
				require.NoError(t, test.enter(username, password), "%q", value)
				_, err = m.revoke(response.Secret)
				require.NoError(t, err, "%q", value)
				require.Error(t, test.enter(username, password), "%q", value)
			}
			require.Greater(t, made, 10, "most values can be kept")
		})
	}
}
