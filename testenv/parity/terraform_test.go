package parity_test

import (
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// resource is what a resource of Terraform's Vault provider sends, and the JSON
// types it asserts on what it reads back; on any other it crashes.
type resource struct {
	name  string
	built []row // as in [group]
	path  string
	sends fields
	// reads are types by path in data; "array?" may be null or missing.
	reads map[string]string
	// never are paths that must not be in data.
	never []string
}

// everyConnection is what all connections are read for.
func everyConnection(details map[string]string) map[string]string {
	reads := map[string]string{
		"plugin_name": "string", "plugin_version": "string", "allowed_roles": "array", "verify_connection": "bool",
		"root_credentials_rotate_statements": "array?", "password_policy": "string", "connection_details": "object",
		"skip_static_role_import_rotation": "bool", "rotation_schedule": "string", "rotation_window": "number",
		"rotation_period": "number", "disable_automated_rotation": "bool",
	}
	for key, kind := range details {
		reads["connection_details."+key] = kind
	}
	return reads
}

func resources(d *databases) []resource {
	login := fields{
		"username": "root_tf", "password": rootPassword, "verify_connection": false, "allowed_roles": "a,b",
		"root_rotation_statements": []string{}, "max_open_connections": 2, "max_idle_connections": 0,
		"max_connection_lifetime": "0s", "username_template": "",
	}
	sqlTypes := map[string]string{
		"connection_url": "string", "username": "string", "username_template": "string", "max_open_connections": "number",
		"max_idle_connections": "number", "max_connection_lifetime": "string", "tls_ca": "string", "auth_type": "string",
	}
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(sqlTypes)
		maps.Copy(all, more)
		return all
	}
	list := []resource{
		{
			name: "vault_database_secret_backend_connection postgresql", path: "config/tf_postgresql",
			sends: changed(login, fields{
				"plugin_name": "postgresql-database-plugin", "connection_url": d.postgres.ConnectionURL("postgres"),
				"disable_escaping": false, "password_authentication": "password", "tls_ca": "", "tls_certificate": "",
				"private_key": "", "auth_type": "", "service_account_json": "",
			}),
			reads: everyConnection(with(map[string]string{
				"disable_escaping": "bool", "password_authentication": "string", "tls_certificate": "string",
			})),
			never: []string{"connection_details.password", "connection_details.private_key", "connection_details.service_account_json"},
		},
		{
			name: "the same, numbers and flags written as text by another tool", path: "config/tf_postgresql",
			sends: fields{
				"max_open_connections": "7", "max_idle_connections": "3", "max_connection_lifetime": 300,
				"disable_escaping": "true", "verify_connection": false,
			},
			reads: everyConnection(with(map[string]string{"disable_escaping": "bool"})),
		},
		{
			name: "vault_database_secret_backend_role", path: "roles/tf",
			sends: fields{"db_name": "tf_postgresql", "creation_statements": []string{createLogin}, "default_ttl": 300, "max_ttl": 600},
			reads: map[string]string{
				"db_name": "string", "creation_statements": "array", "revocation_statements": "array", "rollback_statements": "array",
				"renew_statements": "array", "default_ttl": "number", "max_ttl": "number", "credential_type": "string",
			},
		},
		{
			name: "vault_database_secret_backend_role with a password policy and nothing else", path: "roles/tf_policy",
			sends: fields{
				"db_name": "pg", "creation_statements": []string{createLogin}, "revocation_statements": []string{}, "rollback_statements": []string{},
				"renew_statements": []string{}, "credential_type": "password", "credential_config": fields{"password_policy": "long"},
			},
			reads: map[string]string{
				"db_name": "string", "creation_statements": "array", "revocation_statements": "array", "rollback_statements": "array",
				"renew_statements": "array", "default_ttl": "number", "max_ttl": "number", "credential_type": "string",
				"credential_config": "object", "credential_config.password_policy": "string",
			},
		},
		{
			name: "vault_database_secret_backend_role of certificates", path: "roles/tf_certificate",
			sends: roleFields(fields{"credential_type": "client_certificate", "credential_config": certificateConfig()}),
			reads: map[string]string{
				"credential_type": "string", "credential_config": "object", "credential_config.key_type": "string", "credential_config.key_bits": "number",
				"credential_config.common_name_template": "string", "credential_config.ca_cert": "string",
			},
			never: []string{"credential_config.ca_private_key"},
		},
		{
			name: "ephemeral vault_database_secret", path: "creds/cred",
			reads: map[string]string{"username": "string", "password": "string"},
		},
		{
			name: "ephemeral vault_database_secret of a certificate", path: "creds/tf_certificate",
			reads: map[string]string{"username": "string", "client_certificate": "string", "private_key": "string", "private_key_type": "string"},
		},
		{
			name: "vault_database_secrets_mount lists and reads connections", path: "config?list=true",
			reads: map[string]string{"keys": "array"},
		},
		{
			name: "vault_database_secret_backend_static_role with password_wo", path: "static-roles/tf_known",
			sends: fields{
				"db_name": "pg", "username": "static_" + engineMark, "rotation_period": 86400, "rotation_statements": []string{}, "password": "known",
				"credential_type": "password",
			},
			reads: map[string]string{
				"db_name": "string", "username": "string", "rotation_period": "number", "rotation_statements": "array", "credential_type": "string",
				"skip_import_rotation": "bool",
			},
			never: []string{"password", "rotation_schedule", "rotation_window"},
		},
		{
			name: "vault_database_secret_backend_static_role by a period", built: []row{help("static-roles/x")}, path: "static-roles/tf_static",
			sends: fields{
				"db_name": "pg", "username": "static_" + engineMark, "rotation_period": 86400, "rotation_statements": []string{},
			},
			reads: map[string]string{
				"db_name": "string", "username": "string", "rotation_period": "number", "rotation_statements": "array", "credential_type": "string",
			},
		},
		{
			name: "vault_database_secret_backend_static_role by a schedule", built: []row{help("static-roles/x")}, path: "static-roles/tf_scheduled",
			sends: fields{
				"db_name": "pg", "username": "scheduled_" + engineMark, "rotation_schedule": "0 0 * * SAT", "rotation_window": 7200,
				"rotation_statements": []string{},
			},
			reads: map[string]string{
				"db_name": "string", "username": "string", "rotation_schedule": "string", "rotation_window": "number",
				"rotation_statements": "array", "credential_type": "string",
			},
		},
		{
			name: "vault_database_secret_backend_connection redis", path: "config/tf_redis",
			built: []row{hasRedis(d)},
			sends: fields{
				"plugin_name": "redis-database-plugin", "host": d.redis.Host, "port": d.redis.Port, "username": "root_tf",
				"password": rootPassword, "tls": false, "insecure_tls": false, "ca_cert": "", "verify_connection": false, "allowed_roles": "a,b",
			},
			reads: everyConnection(map[string]string{
				"host": "string", "port": "number", "username": "string", "tls": "bool", "insecure_tls": "bool", "ca_cert": "string",
			}),
			never: []string{"connection_details.password"},
		},
	}
	for _, plugin := range []string{"mysql", "mysql-aurora", "mysql-rds", "mysql-legacy"} {
		list = append(list, resource{
			name: "vault_database_secret_backend_connection " + plugin, path: "config/tf_" + plugin,
			built: []row{hasMySQL(d)},
			sends: changed(login, fields{
				"plugin_name": plugin + "-database-plugin", "connection_url": d.mariadb.ConnectionURL("mysql"),
				"tls_certificate_key": "", "tls_ca": "", "auth_type": "", "service_account_json": "",
			}),
			reads: everyConnection(sqlTypes),
			never: []string{"connection_details.password", "connection_details.tls_certificate_key", "connection_details.service_account_json"},
		})
	}
	return list
}

// terraform writes as the provider does, and reads what it asserts without guard.
func terraform(t *testing.T, ours *engine, d *databases) {
	compared := 0
	for _, r := range resources(d) {
		if !ours.has(t, r.built) {
			t.Logf("%s waits for the feature", r.name)
			continue
		}
		compared++
		if r.sends != nil {
			a := ours.ask(t, put(r.name, r.path, r.sends))
			if !assert.Less(t, a.status, 300, "%s: %s", r.name, a) {
				continue
			}
		}
		a := ours.ask(t, get(r.name, r.path))
		if !assert.Equal(t, http.StatusOK, a.status, "%s: %s", r.name, a) {
			continue
		}
		for path, want := range r.reads {
			found := typeOf(a.at("data." + path))
			if want == "array?" && (found == "array" || found == "null") {
				continue
			}
			assert.Equal(t, want, found, "%s: %s in %s", r.name, path, a)
		}
		if lifetime, ok := a.at("data.connection_details.max_connection_lifetime").(string); ok {
			_, err := time.ParseDuration(lifetime)
			assert.NoError(t, err, r.name)
		}
		for _, path := range r.never {
			assert.Nil(t, a.at("data."+path), "%s: %s can be read", r.name, path)
		}
		assert.NotContains(t, a.text, rootPassword, r.name)
	}
	require.GreaterOrEqual(t, compared, 16, "resources compared")
	for _, path := range []string{"config/tf_postgresql", "roles/tf"} {
		require.Equal(t, http.StatusNoContent, ours.ask(t, del("destroy", path)).status)
		require.Equal(t, http.StatusNotFound, ours.ask(t, get("destroyed", path)).status, "a 404 takes it from Terraform's state")
	}
}
