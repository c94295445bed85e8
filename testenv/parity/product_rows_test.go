package parity_test

import (
	"fmt"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

func mysqlRows(d *databases) []row {
	const dead = "{{username}}:{{password}}@tcp(127.0.0.1:1)/"
	config := func(changes fields) fields {
		return changed(fields{
			"plugin_name": "mysql-database-plugin", "connection_url": d.mariadb.ConnectionURL("mysql"),
			"username": "root_" + engineMark, "password": rootPassword, "allowed_roles": "*",
		}, changes)
	}
	role := func(changes fields) fields {
		return changed(fields{
			"db_name": "my", "default_ttl": "10m",
			"creation_statements": "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT SELECT ON *.* TO '{{name}}'@'%';",
		}, changes)
	}
	return []row{
		put("mysql: no connection_url", "config/my", config(fields{"connection_url": nil})),
		put("mysql: connection_url no DSN", "config/my", config(fields{"connection_url": "::::"})),
		put("mysql: wrong password", "config/my", config(fields{"password": "wrong"})),
		put("mysql: no server there", "config/my", config(fields{"connection_url": dead})),
		put("mysql: a good connection", "config/my", config(nil)),
		get("mysql: read it", "config/my", "data.plugin_name", "data.allowed_roles", "data.connection_details.connection_url"),
		put("mysql: numbers", "config/my", fields{"max_open_connections": 4, "max_idle_connections": 2, "max_connection_lifetime": "60s"}),
		get("mysql: numbers as written", "config/my"),
		put("mysql: max_open_connections no number", "config/my", fields{"max_open_connections": "many"}),
		put("mysql: tls_ca no certificate", "config/my", fields{"tls_ca": "none"}),
		put("mysql: tls_certificate_key no certificate", "config/my", fields{"tls_certificate_key": "none"}),
		put("mysql: a role", "roles/my", role(nil)),
		lend("mysql: creds", "creds/my", "my", "lease_duration"),
		renew("mysql: renew", "my", 60, "lease_duration"),
		revoke("mysql: revoke", "my"),
		put("mysql: own revocation", "roles/my", fields{"revocation_statements": "DROP USER '{{name}}'@'%';"}),
		lend("mysql: creds with own revocation", "creds/my", "my2"),
		revoke("mysql: revoke by own statement", "my2"),
		put("mysql: broken statements", "roles/mybroken", role(fields{"creation_statements": "CREATE NONSENSE '{{name}}';"})),
		get("mysql: creds by broken statements", "creds/mybroken"),
		put("mysql: no statements", "roles/mynothing", role(fields{"creation_statements": nil})),
		get("mysql: creds by no statements", "creds/mynothing"),
		put("mysql: username_template", "config/my", fields{"username_template": `m_{{random 16}}`}),
		get("mysql: creds by username_template", "creds/my"),
		put("mysql: username_template broken", "config/my", fields{"username_template": `{{`}),
		put("mysql: tls_server_name and tls_skip_verify", "config/mytls", config(fields{
			"tls_server_name": "db.example.test", "tls_skip_verify": true, "verify_connection": false,
		})),
		get("mysql: tls as written", "config/mytls", "data.connection_details.tls_server_name", "data.connection_details.tls_skip_verify"),
		put("mysql: tls_skip_verify no flag", "config/mytls", fields{"tls_skip_verify": "perhaps", "verify_connection": false}),
		put("mysql: tls_server_name of another kind", "config/mytls", fields{"tls_server_name": []string{"a", "b"}, "verify_connection": false}),
		put("mysql: an authority nobody has", "config/mytls", fields{"tls_ca": string(anyAuthority().Cert), "tls_skip_verify": false, "verify_connection": true}),
		put("mysql: auth_type unknown", "config/mytls", fields{"auth_type": "guess", "verify_connection": false}),
		del("mysql: tls goes", "config/mytls"),
		put("mysql: a password of a policy", "roles/mypolicy", role(fields{"credential_config": fields{"password_policy": "long"}})),
		lend("mysql: creds by a policy", "creds/mypolicy", "mypolicy", "lease_duration"),
		revoke("mysql: revoke what a policy made", "mypolicy"),
		put("mysql: a key pair", "roles/mykey", role(fields{
			"credential_type":     "rsa_private_key",
			"creation_statements": "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{public_key}}';",
		})),
		get("mysql: creds of a key pair", "creds/mykey"),
		put("mysql: the legacy name", "config/mylegacy", config(fields{"plugin_name": "mysql-legacy-database-plugin"})),
		put("mysql: the rds name", "config/myrds", config(fields{"plugin_name": "mysql-rds-database-plugin"})),
		put("mysql: the aurora name", "config/myaurora", config(fields{"plugin_name": "mysql-aurora-database-plugin"})),
		get("mysql: read the legacy name", "config/mylegacy", "data.plugin_name"),
		del("mysql: the legacy name goes", "config/mylegacy"),
		del("mysql: the rds name goes", "config/myrds"),
		del("mysql: the aurora name goes", "config/myaurora"),
	}
}

func redisRows(d *databases) []row {
	config := func(changes fields) fields {
		return changed(fields{
			"plugin_name": "redis-database-plugin", "host": d.redis.Host, "port": d.redis.Port,
			"username": "root_" + engineMark, "password": rootPassword, "allowed_roles": "*",
		}, changes)
	}
	role := func(changes fields) fields {
		return changed(fields{"db_name": "re", "default_ttl": "10m", "creation_statements": `["~*", "+@read"]`}, changes)
	}
	return []row{
		put("redis: no host", "config/re", config(fields{"host": nil})),
		put("redis: no port", "config/re", config(fields{"port": nil})),
		put("redis: no username", "config/re", config(fields{"username": nil})),
		put("redis: no password", "config/re", config(fields{"password": nil})),
		put("redis: port no number", "config/re", config(fields{"port": "many"})),
		put("redis: port out of range", "config/re", config(fields{"port": 70000})),
		put("redis: wrong password", "config/re", config(fields{"password": "wrong"})),
		put("redis: no server there", "config/re", config(fields{"port": 1})),
		put("redis: tls without an authority", "config/retls", config(fields{"tls": true, "verify_connection": false})),
		put("redis: tls with no certificate", "config/retls", config(fields{"tls": true, "ca_cert": "none"})),
		put("redis: tls no flag", "config/retls", config(fields{"tls": "perhaps"})),
		put("redis: a good connection", "config/re", config(nil)),
		get("redis: read it", "config/re", "data.plugin_name", "data.connection_details.host", "data.connection_details.port"),
		put("redis: flags", "config/re", fields{"tls": false, "insecure_tls": false}),
		get("redis: flags as written", "config/re"),
		put("redis: insecure_tls no flag", "config/re", fields{"insecure_tls": "perhaps"}),
		put("redis: port as text", "config/re", fields{"port": fmt.Sprint(d.redis.Port)}),
		get("redis: port was text", "config/re"),
		put("redis: port a number again", "config/re", fields{"port": d.redis.Port}),
		put("redis: username_template", "config/retemplate", config(fields{"username_template": `r_{{random 12}}`})),
		del("redis: username_template goes", "config/retemplate"),
		put("redis: no password later", "config/re", fields{"password": ""}),
		put("redis: a role", "roles/re", role(nil)),
		lend("redis: creds", "creds/re", "re", "lease_duration"),
		renew("redis: renew", "re", 60, "lease_duration"),
		revoke("redis: revoke", "re"),
		put("redis: a role without statements", "roles/redefault", role(fields{"creation_statements": nil})),
		get("redis: creds without statements", "creds/redefault"),
		put("redis: broken statements", "roles/rebroken", role(fields{"creation_statements": `["+@nonsense"]`})),
		get("redis: creds by broken statements", "creds/rebroken"),
		put("redis: statements no list", "roles/renolist", role(fields{"creation_statements": "~* +@read"})),
		get("redis: creds by statements that are no list", "creds/renolist"),
	}
}

// What follows needs the connections the rows above made.

func mysqlRotationRows() []row {
	return []row{
		put("mysql: static role", "static-roles/mystatic", fields{"db_name": "my", "username": "static_" + engineMark, "rotation_period": "24h"}),
		get("mysql: static creds", "static-creds/mystatic", "data.rotation_period"),
		put("mysql: rotate role", "rotate-role/mystatic", fields{}),
		del("mysql: static role goes", "static-roles/mystatic"),
		put("mysql: rotate root", "rotate-root/my", fields{}),
		get("mysql: creds after it", "creds/my"),
		put("mysql: reset", "reset/my", fields{}),
		put("mysql: reload", "reload/mysql-database-plugin", fields{}),
		del("mysql: the connection goes", "config/my"),
	}
}

func redisRotationRows() []row {
	return []row{
		put("redis: static role", "static-roles/restatic", fields{"db_name": "re", "username": "static_" + engineMark, "rotation_period": "24h"}),
		get("redis: static creds", "static-creds/restatic", "data.rotation_period"),
		put("redis: rotate role", "rotate-role/restatic", fields{}),
		del("redis: static role goes", "static-roles/restatic"),
		put("redis: rotate root", "rotate-root/re", fields{}),
		get("redis: creds after it", "creds/re"),
		put("redis: reset", "reset/re", fields{}),
		put("redis: reload", "reload/redis-database-plugin", fields{}),
		del("redis: the connection goes", "config/re"),
	}
}

// keyRows are about credentials that are no password. PostgreSQL takes neither
// kind; what the engine itself answers can be asked all the same.
func keyRows() []row {
	data := []string{"data.credential_type", "data.credential_config"}
	key := func(config fields) fields {
		return roleFields(fields{"credential_type": "rsa_private_key", "credential_config": config})
	}
	return []row{
		put("keys: a role", "roles/rsa", roleFields(fields{"credential_type": "rsa_private_key"})),
		get("keys: read it", "roles/rsa", data...),
		put("keys: key_bits", "roles/rsa", key(fields{"key_bits": "3072"})),
		get("keys: key_bits are kept", "roles/rsa", data...),
		put("keys: key_bits not offered", "roles/rsa", key(fields{"key_bits": "1024"})),
		put("keys: key_bits no number", "roles/rsa", key(fields{"key_bits": "many"})),
		put("keys: format", "roles/rsa", key(fields{"format": "pkcs8"})),
		put("keys: format unknown", "roles/rsa", key(fields{"format": "guess"})),
		put("keys: config of another type", "roles/rsa", key(fields{"password_policy": "long"})),
		get("keys: creds where the database takes none", "creds/rsa"),
		put("keys: key_bits again", "roles/rsa", key(fields{"key_bits": "4096"})),
		put("keys: an update that names no config", "roles/rsa", fields{"default_ttl": "5m"}),
		get("keys: after an update that names no config", "roles/rsa", data...),
		put("keys: to a password", "roles/rsa", fields{"credential_type": "password", "credential_config": fields{}}),
		get("keys: a password now", "roles/rsa", data...),
		del("keys: the role goes", "roles/rsa"),
	}
}

// anyAuthority is one that no server's certificate is of.
func anyAuthority() testenv.Authority {
	authority, err := testenv.NewAuthority()
	if err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	return authority
}

// certificateConfig is a good credential_config of a client_certificate.
func certificateConfig() fields {
	authority := anyAuthority()
	return fields{
		"common_name_template": "{{.RoleName}}", "key_type": "ec", "key_bits": "256",
		"ca_cert":        string(authority.Cert),
		"ca_private_key": string(authority.Key),
	}
}

func certificateRows(authority fields) []row {
	certificate := func(config fields) fields {
		return roleFields(fields{"credential_type": "client_certificate", "credential_config": config})
	}
	return []row{
		put("certificates: no authority", "roles/cert", certificate(fields{"common_name_template": "{{.RoleName}}"})),
		put("certificates: authority no certificate", "roles/cert", certificate(fields{"ca_cert": "none", "ca_private_key": "none", "key_type": "rsa"})),
		put("certificates: key_type unknown", "roles/cert", certificate(fields{"key_type": "guess"})),
		put("certificates: nothing given", "roles/cert", certificate(fields{})),
		put("certificates: a role", "roles/cert", certificate(authority)),
		get("certificates: read it", "roles/cert", "data.credential_type", "data.credential_config.key_type"),
		get("certificates: creds where the database takes none", "creds/cert"),
		put("certificates: an update that names no config", "roles/cert", fields{"default_ttl": "5m"}),
		get("certificates: after an update that names no config", "roles/cert", "data.credential_type", "data.credential_config.key_type"),
		put("certificates: key_bits not offered", "roles/cert", certificate(changed(authority, fields{"key_type": "rsa", "key_bits": "1024"}))),
		put("certificates: signature_bits", "roles/cert", certificate(changed(authority, fields{"signature_bits": "384"}))),
		put("certificates: signature_bits no number", "roles/cert", certificate(changed(authority, fields{"signature_bits": "many"}))),
		put("certificates: ed25519", "roles/cert", certificate(changed(authority, fields{"key_type": "ed25519", "key_bits": nil}))),
		put("certificates: template broken", "roles/cert", certificate(changed(authority, fields{"common_name_template": "{{"}))),
		del("certificates: the role goes", "roles/cert"),
	}
}
