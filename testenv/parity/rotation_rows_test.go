package parity_test

func resetRows() []row {
	return []row{
		put("reset: a connection", "reset/pg", fields{}),
		{name: "reset: without a body", method: "PUT", path: "reset/pg"},
		put("reset: a missing one", "reset/none", fields{}),
		get("reset: read", "reset/pg"),
		del("reset: delete", "reset/pg"),
		list("reset: list", "reset"),
		put("reset: no name", "reset/", fields{}),
		{
			name: "reload: a product", method: "PUT", path: "reload/postgresql-database-plugin", body: fields{},
			same: []string{"data.count", "data.connections"},
		},
		put("reload: a product without connections", "reload/mongodb-database-plugin", fields{}),
		put("reload: an unknown product", "reload/nosuch-database-plugin", fields{}),
		get("reload: read", "reload/postgresql-database-plugin"),
		list("reload: list", "reload"),
		lend("reset: creds after it", "creds/cred", "reset"),
		revoke("reset: revoke after it", "reset"),
	}
}

// staticFields is a good static role, changed by the fields given.
func staticFields(changes fields) fields {
	return changed(fields{"db_name": "pg", "username": "static_" + engineMark, "rotation_period": "24h"}, changes)
}

func staticRows(d *databases) []row {
	data := []string{
		"data.db_name", "data.rotation_statements", "data.rotation_period", "data.rotation_schedule", "data.rotation_window",
		"data.credential_type", "data.credential_config",
	}
	return []row{
		list("static-roles: list when there is none", "static-roles"),
		get("static-roles: read a missing one", "static-roles/none"),
		del("static-roles: delete a missing one", "static-roles/none"),
		get("static-creds: read a missing one", "static-creds/none"),
		put("rotate-role: a missing one", "rotate-role/none", fields{}),
		put("static-roles: nothing given", "static-roles/st", fields{}),
		put("static-roles: no db_name", "static-roles/st", staticFields(fields{"db_name": nil})),
		put("static-roles: db_name that is missing", "static-roles/st", staticFields(fields{"db_name": "nosuch"})),
		put("static-roles: no username", "static-roles/st", staticFields(fields{"username": nil})),
		put("static-roles: no rotation", "static-roles/st", staticFields(fields{"rotation_period": nil})),
		put("static-roles: period and schedule", "static-roles/st", staticFields(fields{"rotation_schedule": "0 0 * * *"})),
		put("static-roles: period too short", "static-roles/st", staticFields(fields{"rotation_period": 1})),
		put("static-roles: period negative", "static-roles/st", staticFields(fields{"rotation_period": -60})),
		put("static-roles: period no duration", "static-roles/st", staticFields(fields{"rotation_period": "soon"})),
		put("static-roles: schedule no schedule", "static-roles/st", staticFields(fields{"rotation_period": nil, "rotation_schedule": "soon"})),
		put("static-roles: schedule with seconds", "static-roles/st", staticFields(fields{"rotation_period": nil, "rotation_schedule": "*/5 * * * * *"})),
		put("static-roles: window with a period", "static-roles/st", staticFields(fields{"rotation_window": "2h"})),
		put("static-roles: window too small", "static-roles/st", staticFields(fields{"rotation_period": nil, "rotation_schedule": "0 0 * * *", "rotation_window": "1m"})),
		put("static-roles: window no duration", "static-roles/st", staticFields(fields{"rotation_period": nil, "rotation_schedule": "0 0 * * *", "rotation_window": "wide"})),
		put("static-roles: credential_type unknown", "static-roles/st", staticFields(fields{"credential_type": "guess"})),
		put("static-roles: credential_config unknown", "static-roles/typo", staticFields(fields{"credential_config": fields{"colour": "green"}})),
		del("static-roles: it goes", "static-roles/typo"),
		put("static-roles: a key where the database takes none", "static-roles/st", staticFields(fields{"credential_type": "rsa_private_key"})),
		put("static-roles: a certificate", "static-roles/st", staticFields(fields{"credential_type": "client_certificate"})),
		put("static-roles: a user who is missing", "static-roles/nobody", staticFields(fields{"username": "nobody_at_all"})),
		get("static-roles: what failed was not stored", "static-roles/st"),
		get("static-roles: nor was a user who is missing", "static-roles/nobody"),
		put("static-roles: name of a role", "static-roles/cred", staticFields(nil)),
		put("static-roles: a good one", "static-roles/st", staticFields(nil)),
		get("static-roles: read it", "static-roles/st", data...),
		list("static-roles: list them", "static-roles"),
		put("roles: name of a static role", "roles/st", roleFields(nil)),
		get("static-creds: read", "static-creds/st", "data.rotation_period", "lease_duration", "renewable"),
		list("static-creds: list", "static-creds"),
		put("static-creds: write", "static-creds/st", fields{}),
		del("static-creds: delete", "static-creds/st"),
		get("creds: of a static role", "creds/st"),
		get("static-creds: of a dynamic role", "static-creds/cred"),
		put("rotate-role: rotate", "rotate-role/st", fields{}),
		{name: "rotate-role: without a body", method: "PUT", path: "rotate-role/st"},
		get("rotate-role: read", "rotate-role/st"),
		put("rotate-role: a dynamic role", "rotate-role/cred", fields{}),
		get("static-creds: after rotation", "static-creds/st"),
		put("static-roles: username changed", "static-roles/st", staticFields(fields{"username": "another"})),
		put("static-roles: period changed", "static-roles/st", fields{"rotation_period": 7200, "username": "static_" + engineMark}),
		get("static-roles: period was changed", "static-roles/st", data...),
		put("static-roles: update without username", "static-roles/st", fields{"rotation_period": "2h"}),
		get("static-roles: after an update without username", "static-roles/st", data...),
		put("static-roles: statements", "static-roles/st", fields{
			"username": "static_" + engineMark, "rotation_statements": []string{`ALTER ROLE "{{name}}" PASSWORD '{{password}}';`},
		}),
		get("static-roles: statements are kept", "static-roles/st", data...),
		put("rotate-role: by statements", "rotate-role/st", fields{}),
		put("static-roles: password policy", "static-roles/st", fields{
			"username": "static_" + engineMark, "credential_config": fields{"password_policy": "long"},
		}),
		get("static-roles: password policy is kept", "static-roles/st", data...),
		put("static-roles: to a schedule", "static-roles/st", fields{
			"username": "static_" + engineMark, "rotation_schedule": "0 0 * * SAT",
		}),
		get("static-roles: with a schedule now", "static-roles/st"),
		{name: "static-roles: PATCH is not allowed", method: "PATCH", path: "static-roles/st", body: fields{"rotation_period": 60}},

		put("static-roles: by a schedule", "static-roles/sched", staticFields(fields{
			"username": "scheduled_" + engineMark, "rotation_period": nil, "rotation_schedule": "0 0 * * SAT", "rotation_window": "2h",
		})),
		get("static-roles: read the schedule", "static-roles/sched", data...),
		get("static-creds: by a schedule", "static-creds/sched", "data.rotation_schedule", "data.rotation_window"),
		put("static-roles: window away", "static-roles/sched", fields{"username": "scheduled_" + engineMark, "rotation_window": 0}),
		get("static-roles: window is gone", "static-roles/sched"),

		put("static-roles: allowed_roles without it", "config/pg", fields{"allowed_roles": "other"}),
		get("static-creds: not an allowed role", "static-creds/st"),
		put("rotate-role: not an allowed role", "rotate-role/st", fields{}),
		put("static-roles: write when not an allowed role", "static-roles/st2", staticFields(nil)),
		put("static-roles: allowed_roles all", "config/pg", fields{"allowed_roles": "*"}),
		put("static-roles: name with a slash", "static-roles/a/b", staticFields(nil)),
		put("static-roles: name with a space", "static-roles/a%20b", staticFields(nil)),
		put("static-roles: a field nobody knows", "static-roles/st", fields{
			"username": "static_" + engineMark, "favourite_colour": "green",
		}),
		put("static-roles: a connection that is self_managed", "config/self", unverified(d, fields{
			"self_managed": true, "username": nil, "password": nil,
		})),
		del("static-roles: the connection goes", "config/self"),
		del("static-roles: delete", "static-roles/st"),
		get("static-roles: read what was deleted", "static-roles/st"),
		get("static-creds: of what was deleted", "static-creds/st"),
		del("static-roles: delete the scheduled one", "static-roles/sched"),
		// What Terraform's provider sends for password_wo, and what is enterprise there.
		put("static-roles: with the present password", "static-roles/known", staticFields(fields{"password": "second"})),
		get("static-creds: with a present password", "static-creds/known", "data.rotation_period"),
		put("static-roles: another present password", "static-roles/known", staticFields(fields{"password": "third"})),
		del("static-roles: the one with a password goes", "static-roles/known"),
		put("static-roles: without a rotation first", "static-roles/later", staticFields(fields{"skip_import_rotation": true})),
		get("static-roles: read it without a rotation first", "static-roles/later"),
		put("rotate-role: the first of it", "rotate-role/later", fields{}),
		get("static-creds: of the first", "static-creds/later", "data.rotation_period"),
		del("static-roles: that goes too", "static-roles/later"),
		put("static-roles: a login that changes its own password", "static-roles/own", staticFields(fields{"self_managed_password": "wrong"})),
		del("static-roles: and that", "static-roles/own"),
		list("static-roles: list what is left", "static-roles"),
	}
}

func rotationRows(d *databases) []row {
	return []row{
		put("rotate-root: a missing connection", "rotate-root/none", fields{}),
		put("rotate-root: rotate", "rotate-root/pg", fields{}),
		{name: "rotate-root: without a body", method: "PUT", path: "rotate-root/pg"},
		get("rotate-root: read", "rotate-root/pg"),
		list("rotate-root: list", "rotate-root"),
		get("rotate-root: config after it", "config/pg"),
		lend("rotate-root: creds after it", "creds/cred", "rotated"),
		revoke("rotate-root: revoke after it", "rotated"),
		put("rotate-root: a connection without a username", "config/inurl", fields{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "verify_connection": false,
			"connection_url": "postgresql://u:planted@" + d.postgres.Address() + "/postgres?sslmode=disable",
		}),
		put("rotate-root: without a username", "rotate-root/inurl", fields{}),
		del("rotate-root: it goes", "config/inurl"),
		put("rotate-root: both a period and a schedule", "config/pg", fields{"rotation_period": "24h", "rotation_schedule": "0 0 * * *"}),
		put("rotate-root: by a period", "config/pg", fields{"rotation_period": "24h"}),
		get("rotate-root: read the period", "config/pg"),
		put("rotate-root: the period goes", "config/pg", fields{"rotation_period": 0}),
	}
}
