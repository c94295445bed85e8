package plugin

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/go-secure-stdlib/parseutil"
	"github.com/hashicorp/vault/sdk/framework"
)

// detailKind is the JSON type a connection detail has when read. Terraform's
// provider crashes on any other, so what was written in another form is turned
// into it.
type detailKind int

const (
	detailString detailKind = iota
	detailNumber
	detailFlag
	detailDuration // a string such as "300s"
	detailSecret   // never read back
)

// detailKinds are the details of postgresql-database-plugin.
func detailKinds() map[string]detailKind {
	return map[string]detailKind{
		"connection_url":          detailString,
		"username":                detailString,
		"password":                detailSecret,
		"max_open_connections":    detailNumber,
		"max_idle_connections":    detailNumber,
		"max_connection_lifetime": detailDuration,
		"disable_escaping":        detailFlag,
		"username_template":       detailString,
		"password_authentication": detailString,
		"tls_ca":                  detailString,
		"tls_certificate":         detailString,
		"private_key":             detailSecret,
		"auth_type":               detailString,
		"service_account_json":    detailSecret,
		"use_private_ip":          detailFlag,
		"use_psc":                 detailFlag,
		"self_managed":            detailFlag,
	}
}

func secretDetail(key string) bool {
	kind, known := detailKinds()[key]
	return known && kind == detailSecret
}

// normalizeDetail gives value the type its key has. A nil result unsets the key;
// keys we do not know are kept as they are.
func normalizeDetail(key string, value any) (any, error) {
	kind, known := detailKinds()[key]
	if !known || value == nil {
		return value, nil
	}
	if text, ok := value.(string); ok && text == "" && kind != detailString {
		return nil, nil
	}
	switch kind {
	case detailNumber:
		number, err := parseutil.ParseInt(value)
		if err != nil || number < math.MinInt32 || number > math.MaxInt32 {
			return nil, invalidField(key, "is not a number")
		}
		return int(number), nil
	case detailFlag:
		flag, err := parseutil.ParseBool(value)
		if err != nil {
			return nil, invalidField(key, "is not true or false")
		}
		return flag, nil
	case detailDuration:
		text, err := detailText(key, value)
		if err != nil {
			return nil, err
		}
		if _, err := strconv.ParseInt(text, 10, 64); err == nil {
			text += "s"
		}
		if d, err := time.ParseDuration(text); err != nil || d < 0 {
			return nil, invalidField(key, "is not a duration such as 300s")
		}
		return text, nil
	default:
		return detailText(key, value)
	}
}

// detailText reads a string; numbers and flags are taken for their text.
func detailText(key string, value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case bool, int, int64:
		return fmt.Sprint(v), nil
	case nil:
		return "", nil
	default:
		return "", invalidField(key, "is not a string")
	}
}

// refuseNearMiss refuses a key that nobody knows but that looks like a known one:
// taken as it is, "passwrod" would be stored in clear and do nothing.
func refuseNearMiss(key string, schema map[string]*framework.FieldSchema) error {
	kinds := detailKinds()
	if _, known := kinds[key]; known {
		return nil
	}
	names := make([]string, 0, len(kinds)+len(schema))
	for name := range kinds {
		names = append(names, name)
	}
	for name := range schema {
		names = append(names, name)
	}
	slices.Sort(names)
	plain := func(name string) string { return strings.ReplaceAll(strings.ToLower(name), "-", "_") }
	for _, name := range names {
		allowed := 2
		if len(name) < 8 {
			allowed = 1
		}
		if levenshtein.Distance(plain(key), name, nil) <= allowed {
			return invalidField(key, "unknown field %q; did you mean %q?", key, name)
		}
	}
	return nil
}
