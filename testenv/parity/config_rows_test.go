package parity_test

import "maps"

// pgConfig is a working configuration, changed by the fields given; nil takes one
// away.
func pgConfig(d *databases, changes fields) fields {
	config := fields{
		"plugin_name": "postgresql-database-plugin", "connection_url": d.postgres.ConnectionURL("postgres"),
		"username": "root_" + engineMark, "password": rootPassword, "allowed_roles": "*",
	}
	return changed(config, changes)
}

// unverified is pgConfig that is stored without being tried.
func unverified(d *databases, changes fields) fields {
	return changed(pgConfig(d, fields{"verify_connection": false}), changes)
}

func changed(config, changes fields) fields {
	config = maps.Clone(config)
	for key, value := range changes {
		if value == nil {
			delete(config, key)
			continue
		}
		config[key] = value
	}
	return config
}

func configRows(d *databases) []row {
	const dead = "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres?sslmode=disable"
	rows := []row{
		list("config: list when there is none", "config"),
		list("config: list with a slash", "config/"),
		get("config: read a missing one", "config/none"),
		del("config: delete a missing one", "config/none"),
		put("config: nothing given", "config/pg", fields{}),
		put("config: no plugin_name", "config/pg", pgConfig(d, fields{"plugin_name": nil})),
		put("config: empty plugin_name", "config/pg", pgConfig(d, fields{"plugin_name": ""})),
		put("config: unknown plugin_name", "config/pg", pgConfig(d, fields{"plugin_name": "nosuch-database-plugin"})),
		put("config: plugin_name of another kind", "config/pg", pgConfig(d, fields{"plugin_name": []int{1}})),
		put("config: no connection_url", "config/pg", pgConfig(d, fields{"connection_url": nil})),
		put("config: connection_url is no URL", "config/pg", pgConfig(d, fields{"connection_url": "::::"})),
		put("config: connection_url is a list", "config/pg", pgConfig(d, fields{"connection_url": []string{"a"}})),
		put("config: wrong password", "config/pg", pgConfig(d, fields{"password": "wrong"})),
		put("config: wrong username", "config/pg", pgConfig(d, fields{"username": "nobody"})),
		put("config: no server there", "config/pg", pgConfig(d, fields{"connection_url": dead})),
		get("config: what failed was not stored", "config/pg"),

		put("config: a good one", "config/pg", pgConfig(d, nil)),
		get("config: read it", "config/pg", "data.allowed_roles", "data.plugin_name", "data.verify_connection",
			"data.password_policy", "data.plugin_version", "data.root_credentials_rotate_statements",
			"data.connection_details.connection_url"),
		list("config: list it", "config"),
		{name: "config: POST writes too", method: "POST", path: "config/pg", body: pgConfig(d, nil)},
		{name: "config: PATCH is not allowed", method: "PATCH", path: "config/pg", body: fields{"allowed_roles": "a"}},
		{name: "config: a body that is no object", method: "PUT", path: "config/pg", body: []int{1}},
		{name: "config: a write without a body", method: "PUT", path: "config/pg"},

		put("config: no server there, not verified", "config/dead", pgConfig(d, fields{"connection_url": dead, "verify_connection": false})),
		get("config: read one that leads nowhere", "config/dead", "data.verify_connection"),
		put("config: verify_connection is kept", "config/dead", fields{"allowed_roles": "x"}),
		put("config: verify_connection turned on", "config/dead", fields{"verify_connection": true}),
		put("config: verify_connection as text", "config/pg", fields{"verify_connection": "true"}),
		put("config: verify_connection of another kind", "config/pg", fields{"verify_connection": "maybe"}),

		put("config: allowed_roles as text", "config/pg", fields{"allowed_roles": "a, b,c"}),
		get("config: allowed_roles were split", "config/pg", "data.allowed_roles"),
		put("config: allowed_roles as a list", "config/pg", fields{"allowed_roles": []string{"a", "b*", "c"}}),
		get("config: allowed_roles as listed", "config/pg", "data.allowed_roles"),
		put("config: allowed_roles a number", "config/pg", fields{"allowed_roles": 5}),
		get("config: allowed_roles is now", "config/pg", "data.allowed_roles"),
		put("config: allowed_roles an object", "config/pg", fields{"allowed_roles": fields{"a": 1}}),
		put("config: allowed_roles empty", "config/pg", fields{"allowed_roles": ""}),
		get("config: allowed_roles is an empty list", "config/pg", "data.allowed_roles"),
		put("config: allowed_roles null", "config/pg", fields{"allowed_roles": nil}),
		put("config: no allowed_roles", "config/bare", unverified(d, fields{"allowed_roles": nil})),
		get("config: allowed_roles never given", "config/bare", "data.allowed_roles", "data.verify_connection"),

		put("config: root_rotation_statements a list", "config/pg", fields{"root_rotation_statements": []string{"SELECT 1;", "SELECT 2;"}}),
		get("config: root_rotation_statements", "config/pg", "data.root_credentials_rotate_statements"),
		put("config: root_rotation_statements a text", "config/pg", fields{"root_rotation_statements": "SELECT 1; SELECT 2;"}),
		get("config: root_rotation_statements is one", "config/pg", "data.root_credentials_rotate_statements"),
		put("config: root_rotation_statements an object", "config/pg", fields{"root_rotation_statements": fields{"a": 1}}),
		put("config: root_rotation_statements none", "config/pg", fields{"root_rotation_statements": []string{}}),
		get("config: root_rotation_statements cleared", "config/pg", "data.root_credentials_rotate_statements"),

		put("config: password_policy", "config/pg", fields{"password_policy": "long"}),
		get("config: password_policy is kept", "config/pg", "data.password_policy"),
		put("config: password_policy that is missing", "config/pg", fields{"password_policy": "nosuch"}),
		put("config: password_policy of another kind", "config/pg", fields{"password_policy": []string{"a", "b"}}),
		put("config: password_policy none", "config/pg", fields{"password_policy": ""}),

		put("config: plugin_version no version", "config/pg", fields{"plugin_version": "soon"}),
		put("config: plugin_version that is missing", "config/pg", fields{"plugin_version": "9.9.9"}),
		put("config: plugin_version none", "config/pg", fields{"plugin_version": ""}),
		put("config: disable_automated_rotation", "config/pg", fields{"disable_automated_rotation": true}),
		put("config: disable_automated_rotation of another kind", "config/pg", fields{"disable_automated_rotation": "perhaps"}),
		put("config: skip_static_role_import_rotation", "config/pg", fields{"skip_static_role_import_rotation": false}),
		put("config: rotation_period of another kind", "config/pg", fields{"rotation_period": "soon"}),
		put("config: rotation_window of another kind", "config/pg", fields{"rotation_window": "soon"}),

		put("config: numbers and flags", "config/pg", fields{
			"max_open_connections": 5, "max_idle_connections": 3, "max_connection_lifetime": "300s", "disable_escaping": false,
		}),
		get("config: numbers and flags as written", "config/pg", "data.connection_details.max_open_connections",
			"data.connection_details.max_connection_lifetime"),
		put("config: numbers as text", "config/pg", fields{"max_open_connections": "5", "max_idle_connections": "3"}),
		get("config: numbers that were text", "config/pg"),
		put("config: max_open_connections no number", "config/pg", fields{"max_open_connections": "many"}),
		put("config: max_connection_lifetime no duration", "config/pg", fields{"max_connection_lifetime": "long"}),
		put("config: disable_escaping no flag", "config/pg", fields{"disable_escaping": "perhaps"}),
		put("config: back to numbers", "config/pg", fields{"max_open_connections": 5, "max_idle_connections": 3}),
		put("config: password_authentication scram", "config/pg", fields{"password_authentication": "scram-sha-256"}),
		get("config: password_authentication is kept", "config/pg", "data.connection_details.password_authentication"),
		put("config: password_authentication unknown", "config/pg", fields{"password_authentication": "guess"}),
		put("config: auth_type unknown", "config/pg", fields{"auth_type": "guess"}),
		put("config: auth_type of another kind", "config/pg", fields{"auth_type": []string{"a", "b"}}),
		put("config: auth_type none", "config/pg", fields{"auth_type": ""}),
		put("config: the clouds' flags", "config/pg", fields{"use_private_ip": false, "use_psc": false}),
		put("config: the clouds' flags no flags", "config/pg", fields{"use_private_ip": "perhaps"}),
		put("config: max_idle_connections none", "config/pg", fields{"max_idle_connections": -1}),
		get("config: max_idle_connections is none", "config/pg", "data.connection_details.max_idle_connections"),
		put("config: max_connection_lifetime a number", "config/lifetime", unverified(d, fields{"max_connection_lifetime": 300})),
		get("config: max_connection_lifetime was a number", "config/lifetime"),
		put("config: a detail of another type", "config/pg", fields{"username": fields{"a": 1}}),
		put("config: a private key without its certificate", "config/pg", fields{"private_key": "none"}),
		put("config: a private key away", "config/pg", fields{"private_key": "", "tls_certificate": "", "max_idle_connections": 3}),
		put("config: another product in its place", "config/lifetime", fields{
			"plugin_name": "redis-database-plugin", "host": d.redis.Host, "port": d.redis.Port,
		}),
		get("config: another product is there", "config/lifetime", "data.plugin_name"),
		del("config: that goes", "config/lifetime"),
		put("config: username_template", "config/pg", fields{"username_template": `p-{{.RoleName}}-{{random 12}}`}),
		put("config: username_template broken", "config/pg", fields{"username_template": `{{`}),
		put("config: username_template unknown function", "config/pg", fields{"username_template": `{{nosuch 3}}`}),
		put("config: username_template unknown value", "config/pg", fields{"username_template": `{{.Nosuch}}`}),
		put("config: username_template none", "config/pg", fields{"username_template": ""}),
		put("config: tls_ca no certificate", "config/pg", fields{"tls_ca": "no certificate"}),
		put("config: tls_certificate no certificate", "config/pg", fields{"tls_certificate": "none", "private_key": "none"}),
		put("config: a field nobody knows", "config/pg", fields{"favourite_colour": "green"}),
		get("config: a field nobody knows is kept", "config/pg", "data.connection_details.favourite_colour"),
		put("config: a field that is nearly known", "config/nearly", unverified(d, fields{"max_open_conections": 5})),
		del("config: it goes", "config/nearly"),

		put("config: a password in the URL", "config/inurl", fields{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "verify_connection": false,
			"connection_url": "postgresql://u:planted@" + d.postgres.Address() + "/postgres?sslmode=disable",
		}),
		get("config: a password in the URL is hidden", "config/inurl", "data.connection_details.connection_url"),
		put("config: keyword form of the URL", "config/keyword", unverified(d, fields{
			"connection_url": "host=127.0.0.1 user={{username}} password={{password}} dbname=postgres sslmode=disable",
		})),
		get("config: keyword form is read", "config/keyword", "data.connection_details.connection_url"),

		put("config: name with a dot", "config/a.b", unverified(d, nil)),
		put("config: name with dashes and underscores", "config/a-b__c-1", unverified(d, nil)),
		put("config: name with capitals", "config/UPPER", unverified(d, nil)),
		put("config: name of one character", "config/x", unverified(d, nil)),
		put("config: name beginning with a dash", "config/-a", unverified(d, nil)),
		put("config: name ending with a dot", "config/a.", unverified(d, nil)),
		put("config: name with a space", "config/a%20b", unverified(d, nil)),
		put("config: name with a slash", "config/a/b", unverified(d, nil)),
		put("config: name beyond ASCII", "config/%C3%BC", unverified(d, nil)),
		put("config: name with two dots", "config/a..b", unverified(d, nil)),
		get("config: read a name with a slash", "config/a/b"),
		get("config: read the list", "config"),
		list("config: list all", "config"),
		list("config: list below a name", "config/pg"),
		get("config: list by a GET", "config?list=true", "data.keys"),
		del("config: delete", "config/UPPER"),
		get("config: read what was deleted", "config/UPPER"),
		del("config: delete again", "config/UPPER"),
	}
	for _, name := range []string{"dead", "bare", "inurl", "keyword", "a.b", "a-b__c-1", "x", "a..b"} {
		rows = append(rows, del("config: delete "+name, "config/"+name))
	}
	return append(rows,
		list("config: list what is left", "config"),
		put("config: as the rows below need it", "config/pg", pgConfig(d, nil)),
	)
}
