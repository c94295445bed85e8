package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// requestBody reads a request's body as Vault hands it to a plugin, laid over
// fields that make a valid one. It is nil when the framework refuses it.
func requestBody(t *testing.T, body string, schema map[string]*framework.FieldSchema, base map[string]any) *framework.FieldData {
	t.Helper()
	var given map[string]any
	if json.Unmarshal([]byte(body), &given) != nil {
		t.Skip("no JSON object")
	}
	raw := map[string]any{}
	for key, value := range base {
		raw[key] = value
	}
	for key, value := range given {
		raw[key] = value
	}
	data := &framework.FieldData{Raw: raw, Schema: schema}
	if data.Validate() != nil {
		return nil
	}
	return data
}

// requireRefusal holds an error to what a caller gets: the field that is wrong.
func requireRefusal(t *testing.T, err error) {
	t.Helper()
	var refusal *wire.Error
	var field *account.FieldError
	switch {
	case errors.As(err, &refusal):
		require.Equal(t, wire.CodeInvalid, refusal.Code, "%v", err)
		require.NotEmpty(t, refusal.Field, "%v", err)
	case errors.As(err, &field):
		require.NotEmpty(t, field.Field, "%v", err)
	default:
		t.Fatalf("%T %v", err, err)
	}
}

func encoded(t *testing.T, value any) string {
	t.Helper()
	content, err := json.Marshal(value)
	require.NoError(t, err)
	return string(content)
}

// copied is value as it comes back from storage.
func copied[T any](t *testing.T, value T) *T {
	t.Helper()
	again := new(T)
	require.NoError(t, json.Unmarshal([]byte(encoded(t, value)), again))
	return again
}

// Whatever is written to config/, it is refused with the field that is wrong, or it
// is the same after a restart, has the types that Terraform needs, and shows no
// secret.
func FuzzConfigFields(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"max_open_connections":"5","max_idle_connections":-1,"max_connection_lifetime":300}`,
		`{"connection_url":"postgresql://{{username}}:{{password}}@[::1]:5433,b/shop?sslmode=verify-full&connect_timeout=3"}`,
		`{"connection_url":"{{username}}:{{password}}@tcp(db:3306)/shop?tls=true&sql_mode=%27ANSI%27"}`,
		`{"host":"cache","port":"6380","tls":"true","insecure_tls":1,"ca_cert":""}`,
		`{"rotation_period":"24h","disable_automated_rotation":"yes"}`, `{"rotation_schedule":"0 3 * * SAT","rotation_window":3600}`,
		`{"allowed_roles":"a,b-*","root_rotation_statements":["ALTER ROLE x"],"password_policy":"p","plugin_version":"1.2.3"}`,
		`{"username_template":"{{.DisplayName}}-{{random 20}}","scram_iterations":1,"self_managed":true,"auth_type":"cert"}`,
		`{"max_leases":5,"max_per_minute":1e3,"tls_ca":"x","tls_certificate":"x","private_key":"x","tls_certificate_key":"x"}`,
		`{"passwrod":"x","something":{"nested":[1,null]},"verify_connection":"no"}`,
	} {
		for plugin := range pluginNames() {
			f.Add(uint8(plugin), body)
		}
	}
	b := newBackend(DefaultVersion, func() time.Time { return start }, systemUptime())
	f.Fuzz(func(t *testing.T, plugin uint8, body string) {
		names := pluginNames()
		base := map[string]any{
			"plugin_name": names[int(plugin)%len(names)], "username": "root", "password": "planted-password",
		}
		switch base["plugin_name"] {
		case redisPluginName:
			base["host"], base["port"] = "cache.example.test", 6379
		case postgresPluginName:
			base["connection_url"] = someURL
		default:
			base["connection_url"] = "{{username}}:{{password}}@tcp(db.example.test:3306)/shop"
		}
		data := requestBody(t, body, configFields(), base)
		if data == nil {
			return
		}
		planted := strings.Contains(body, "planted") // the fuzzer may write it elsewhere
		stored, err := mergeConfig(nil, "c", data)
		if err == nil {
			b.planRoot(&stored)
			_, err = newConnection(*copied(t, stored))
		}
		if err != nil {
			requireRefusal(t, err)
			require.True(t, planted || !strings.Contains(err.Error(), "planted"), "%v", err)
			return
		}
		c, err := newConnection(stored)
		require.NoError(t, err)
		again, err := newConnection(*copied(t, c.storedConnection))
		require.NoError(t, err)
		require.Equal(t, c.digest, again.digest)
		shown := encoded(t, c.shownDetails())
		require.JSONEq(t, shown, encoded(t, again.shownDetails()))
		require.True(t, planted || !strings.Contains(shown, "planted"), shown)
		for key, value := range again.shownDetails() {
			switch c.product.details[key] {
			case detailNumber:
				require.IsType(t, 0, value, key)
			case detailFlag:
				require.IsType(t, true, value, key)
			case detailDuration:
				require.IsType(t, "", value, key)
			case detailSecret:
				t.Fatalf("%s is shown", key)
			}
		}
		require.True(t, c.NextRootRotation.IsZero() || c.NextRootRotation.After(start))

		// Written again as it is read, nothing changes.
		written := map[string]any{}
		for key, value := range again.shownDetails() {
			if key != "connection_url" { // it may be redacted
				written[key] = value
			}
		}
		merged, err := mergeConfig(c, "c", &framework.FieldData{Raw: written, Schema: configFields()})
		require.NoError(t, err)
		require.JSONEq(t, encoded(t, stored.Details), encoded(t, merged.Details))

		driver, err := c.product.open(c.storedConnection)
		if err != nil {
			requireRefusal(t, err)
			require.True(t, planted || !strings.Contains(err.Error(), "planted"), "%v", err)
			return
		}
		driver.Close()
	})
}

// Whatever is written to roles/, it is refused with the field that is wrong or kept
// as it was written.
func FuzzRoleFields(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"db_name":"","creation_statements":"CREATE ROLE x"}`, `{"default_ttl":"1h","max_ttl":86400.5}`, `{"default_ttl":-1}`,
		`{"revocation_statements":["a","b"],"renew_statements":[],"rollback_statements":null}`,
		`{"credential_type":"rsa_private_key","credential_config":{"key_bits":2048}}`, `{"credential_config":{"password_policy":"p"}}`,
		`{"credential_type":"client_certificate","credential_config":"a=b"}`, `{"max_leases":"3","max_per_minute":-1}`, `{"max_ttl":1e30}`,
	} {
		f.Add(body)
	}
	fields := newBackend(DefaultVersion, time.Now, systemUptime()).Route("roles/app").Fields
	f.Fuzz(func(t *testing.T, body string) {
		data := requestBody(t, body, fields, map[string]any{"db_name": "prod"})
		if data == nil {
			return
		}
		r, err := mergeRole(nil, "app", data)
		if err != nil {
			requireRefusal(t, err)
			return
		}
		require.NotEmpty(t, r.DBName)
		require.GreaterOrEqual(t, r.DefaultTTL, time.Duration(0))
		require.GreaterOrEqual(t, r.MaxTTL, time.Duration(0))
		stored := copied(t, *r)
		require.JSONEq(t, encoded(t, r), encoded(t, stored))
		again, err := mergeRole(stored, "app", data)
		require.NoError(t, err)
		require.JSONEq(t, encoded(t, r), encoded(t, again))
	})
}

// Whatever is written to static-roles/, it is refused with the field that is wrong,
// or the role has one way to be rotated, and it lies in the future.
func FuzzStaticRoleFields(f *testing.F) {
	for _, body := range []string{
		`{"rotation_period":5}`, `{"rotation_period":"24h","rotation_schedule":""}`, `{"rotation_schedule":"*/15 0-7,9 1 JAN-DEC MON#2"}`,
		`{"rotation_schedule":"0 0 29 2 *","rotation_window":"2h"}`, `{"rotation_schedule":"CRON_TZ=UTC 0 0 * * *"}`, `{"rotation_schedule":"@daily"}`,
		`{"manual":true}`, `{"manual":"true","rotation_period":0}`, `{"rotation_period":9223372037}`, `{"rotation_period":-9223372036854775808}`,
		`{"rotation_period":60,"credential_type":"rsa_private_key","credential_config":{"key_bits":3072,"format":"pkcs8"}}`,
		`{"rotation_period":60,"password":"x","self_managed_password":"y","skip_import_rotation":1}`,
		`{"rotation_period":60,"rotation_statements":["a"],"credential_config":"password_policy=p"}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		data := requestBody(t, body, staticRoleFields(), map[string]any{"db_name": "prod", "username": "svc"})
		if data == nil {
			return
		}
		r := &staticRole{Name: "app", CredentialType: credentialPassword}
		if err := r.merge(data); err != nil {
			requireRefusal(t, err)
			return
		}
		require.NoError(t, r.Rotation.check())
		ways := 0
		for _, has := range []bool{r.Manual, r.Rotation.Period != 0, r.Rotation.Schedule != ""} {
			if has {
				ways++
			}
		}
		require.Equal(t, 1, ways, "%+v", r.Rotation)
		next := r.Rotation.next(start)
		require.Equal(t, r.Manual, next.IsZero())
		if !r.Manual {
			require.True(t, next.After(start), "%v", next)
			require.GreaterOrEqual(t, r.Rotation.interval(next), shortestRotation)
			require.False(t, r.Rotation.missed(next, next))
		}
		// As text, for storage does not tell an empty list from none.
		stored := copied(t, *r)
		require.JSONEq(t, encoded(t, r), encoded(t, stored))
		require.NoError(t, stored.merge(data))
		require.JSONEq(t, encoded(t, r), encoded(t, stored))
	})
}

// Whatever is written to policies/, it is refused with the field that is wrong, or a
// read shows what can be written again without changing anything.
func FuzzPolicyFields(f *testing.F) {
	for _, body := range []string{
		`{"entities":"a,b","operations":["clone"],"sources":"prod-*","targets":"*"}`, `{"allowed_operations":"clone,drop"}`,
		`{"max_operations_per_hour":"5","require_tls":"true"}`, `{"max_duration":"1h","max_bytes":"10GB","max_rows":1e18,"max_concurrent":-1}`,
		`{"allowed_hours":"22:00-06:00 Europe/Berlin"}`, `{"labels":{"env":"prod"},"approvals":{"count":2}}`, `{"source_labels":"env=prod"}`,
		`{"preset":"balanced"}`, `{"groups":null,"sources":[1,{}]}`,
	} {
		f.Add(body)
	}
	b := newBackend(DefaultVersion, time.Now, systemUptime())
	err := b.Setup(context.Background(), &logical.BackendConfig{Logger: hclog.NewNullLogger(), System: logical.TestSystemView()})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, body string) {
		var given map[string]any
		if json.Unmarshal([]byte(body), &given) != nil {
			t.Skip("no JSON object")
		}
		storage := &logical.InmemStorage{}
		write := func(operation logical.Operation, data map[string]any) (*logical.Response, error) {
			return b.HandleRequest(t.Context(), &logical.Request{Operation: operation, Path: "policies/p", Data: data, Storage: storage})
		}
		defer func() {
			_, err := write(logical.DeleteOperation, nil)
			require.NoError(t, err)
		}()
		if _, err := write(logical.UpdateOperation, given); err != nil {
			refusal := wire.ParseError(err.Error())
			require.NotNil(t, refusal, "%v", err)
			require.Less(t, refusal.Code.Info().HTTP, 500, "%v", err)
			return
		}
		first, err := write(logical.ReadOperation, nil)
		require.NoError(t, err)
		require.NotNil(t, first)
		_, err = write(logical.UpdateOperation, *copied(t, first.Data))
		require.NoError(t, err)
		second, err := write(logical.ReadOperation, nil)
		require.NoError(t, err)
		delete(first.Data, "version") // counts the writes
		delete(second.Data, "version")
		require.JSONEq(t, encoded(t, first.Data), encoded(t, second.Data))
	})
}

// Whatever the template and whoever asks: it is refused, or the name fits the
// server and has the whole of its random part.
func FuzzUsernameTemplate(f *testing.F) {
	for _, text := range []string{
		`v-{{.DisplayName}}-{{.RoleName}}-{{random 20}}`, `{{.MountID}}{{.EntityName | lowercase}}_{{random 12 | uppercase}}`,
		`{{printf "v-%s-%s-%s-%s" (.DisplayName | truncate 8) (.RoleName | truncate 8) (random 20) (unix_time) | truncate 63}}`,
		`{{index .EntityMetadata "team"}}{{.EntityMetadata.team}}-{{uuid}}`, `{{.Aliases.a.Name}}{{range .Aliases}}{{.Metadata.k}}{{end}}{{random 8}}`,
		`{{random 2000000000}}`, `{{random -1}}`, `{{random 0}}`, `{{.DisplayName | sha256 | truncate_sha256 20}}{{timestamp "2006"}}{{replace "a" "b" .RoleName}}`,
	} {
		f.Add(text, "token-alice", "app", "Alice", "team")
		f.Add(text, strings.Repeat("ä'\"\\;$$\n\x00", 20), strings.Repeat("r", 200), "", "<no value>")
	}
	f.Fuzz(func(t *testing.T, text, display, role, entity, metadata string) {
		if strings.Contains(text, "range") {
			t.Skip("a range over a number is a loop of any length, and who writes templates may do worse")
		}
		parsed, err := parseUsernameTemplate(text)
		if err != nil {
			requireRefusal(t, err)
			return
		}
		data := usernameData{
			DisplayName: display, RoleName: role, MountID: "abcdefgh", EntityID: "id", EntityName: entity,
			EntityMetadata: map[string]string{"team": metadata},
			Aliases:        map[string]usernameAlias{"a": {Name: entity, Metadata: map[string]string{"k": metadata}}},
		}
		for _, name := range []string{postgresPluginName, mysqlPluginName, redisPluginName, "mysql-legacy-database-plugin"} {
			p, err := productOf(name)
			require.NoError(t, err)
			made, err := parsed.name(data, p.usernames)
			if err != nil {
				requireRefusal(t, err)
				continue
			}
			require.True(t, p.usernames.fits(made), "%q for %s", made, name)
		}
	})
}
