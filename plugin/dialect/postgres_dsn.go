package dialect

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// The places in a connection string where the login goes.
const (
	UsernamePlaceholder = "{{username}}"
	PasswordPlaceholder = "{{password}}"
)

// redactedPassword is what net/url writes for a password.
const redactedPassword = "xxxxx"

// PostgresDSN is what a PostgreSQL connection string says, without its secrets.
type PostgresDSN struct {
	Host     string // the first one, when there are several
	Port     int    // 5432 when not given
	Database string // empty when not given: the server then takes the user's name
	SSLMode  string // libpq's word; prefer when not given
	// HasPassword tells that a password stands in the string itself.
	HasPassword bool
}

var errDSN = errors.New("neither a postgres:// URL nor a list of key=value settings")

// ParsePostgresDSN reads a connection string in one of libpq's two forms. Errors
// name the fault and never repeat the string.
func ParsePostgresDSN(text string) (PostgresDSN, error) {
	settings, err := postgresSettings(text)
	if err != nil {
		return PostgresDSN{}, err
	}
	d := PostgresDSN{Host: "localhost", Port: 5432, SSLMode: "prefer"}
	if hosts := settings["host"]; hosts != "" {
		d.Host, _, _ = strings.Cut(hosts, ",")
	} else if hosts := settings["hostaddr"]; hosts != "" {
		d.Host, _, _ = strings.Cut(hosts, ",")
	}
	if ports := settings["port"]; ports != "" {
		port, _, _ := strings.Cut(ports, ",")
		d.Port, err = strconv.Atoi(port)
		if err != nil || d.Port < 1 || d.Port > 65535 {
			return PostgresDSN{}, errors.New("the port is not a number from 1 to 65535")
		}
	}
	d.Database = settings["dbname"]
	if mode := settings["sslmode"]; mode != "" {
		switch mode {
		case "disable", "allow", "prefer", "require", "verify-ca", "verify-full":
			d.SSLMode = mode
		default:
			return PostgresDSN{}, errors.New("sslmode is not one of disable, allow, prefer, require, verify-ca, verify-full")
		}
	}
	password := settings["password"]
	d.HasPassword = password != "" && password != PasswordPlaceholder
	return d, nil
}

// BuildPostgresDSN puts the login into a connection string where its
// placeholders stand. With raw the caller has escaped the values already;
// otherwise they are escaped as the form of the string needs it.
func BuildPostgresDSN(text, username, password string, raw bool) (string, error) {
	if !raw && isPostgresURL(text) {
		username, password = percentEncode(username), percentEncode(password)
	}
	if !raw && !isPostgresURL(text) {
		text = strings.NewReplacer(
			"'"+UsernamePlaceholder+"'", UsernamePlaceholder, "'"+PasswordPlaceholder+"'", PasswordPlaceholder,
		).Replace(text)
		username, password = settingQuote(username), settingQuote(password)
	}
	built := strings.NewReplacer(UsernamePlaceholder, username, PasswordPlaceholder, password).Replace(text)
	if _, err := ParsePostgresDSN(built); err != nil {
		return "", err
	}
	return built, nil
}

// settingQuote quotes a value of the key=value form.
func settingQuote(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

// RedactPostgresDSN returns text without its passwords; placeholders stay. What
// cannot be parsed is not shown at all.
func RedactPostgresDSN(text string) string {
	if isPostgresURL(text) {
		return redactURL(text)
	}
	pairs, err := postgresPairs(text)
	if err != nil {
		return redactedPassword
	}
	var b strings.Builder
	last := 0
	for _, pair := range pairs {
		if !secretSetting(pair.key) || pair.value == PasswordPlaceholder {
			continue
		}
		b.WriteString(text[last:pair.start])
		b.WriteString(redactedPassword)
		last = pair.end
	}
	b.WriteString(text[last:])
	return b.String()
}

func secretSetting(key string) bool {
	switch strings.ToLower(key) {
	case "password", "sslpassword":
		return true
	}
	return false
}

func isPostgresURL(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
}

// postgresURL is a connection URL cut into its parts, nothing decoded.
// net/url refuses the braces of placeholders.
type postgresURL struct {
	scheme             string // with ://
	userinfo           string
	hasUserinfo        bool
	hosts, path, query string
}

func cutPostgresURL(text string) (postgresURL, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return postgresURL{}, errDSN
	}
	u := postgresURL{scheme: scheme + "://"}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority, rest = rest[:end], rest[end:]
	} else {
		rest = ""
	}
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		u.userinfo, u.hasUserinfo, authority = authority[:at], true, authority[at+1:]
	} else if strings.Contains(rest, "@") && strings.Contains(authority, ":") && !strings.Contains(rest, "?") {
		return postgresURL{}, errors.New("the user name or password holds a character that must be percent-encoded")
	}
	if strings.Contains(rest, "#") {
		return postgresURL{}, errors.New("the URL holds a # that must be percent-encoded")
	}
	u.hosts = authority
	u.path, u.query, _ = strings.Cut(rest, "?")
	return u, nil
}

func redactURL(text string) string {
	u, err := cutPostgresURL(text)
	if err != nil {
		scheme, _, _ := strings.Cut(text, "://")
		return scheme + "://" + redactedPassword
	}
	var b strings.Builder
	b.WriteString(u.scheme)
	if u.hasUserinfo {
		user, password, has := strings.Cut(u.userinfo, ":")
		b.WriteString(user)
		if has {
			if password != PasswordPlaceholder && password != "" {
				password = redactedPassword
			}
			b.WriteString(":" + password)
		}
		b.WriteString("@")
	}
	b.WriteString(u.hosts)
	b.WriteString(u.path)
	if u.query != "" {
		parts := strings.Split(u.query, "&")
		for i, part := range parts {
			key, value, _ := strings.Cut(part, "=")
			if name, err := url.QueryUnescape(key); (err != nil || secretSetting(name)) && value != PasswordPlaceholder {
				parts[i] = key + "=" + redactedPassword
			}
		}
		b.WriteString("?" + strings.Join(parts, "&"))
	}
	return b.String()
}

// postgresSettings reads either form into libpq's keywords, lower case.
func postgresSettings(text string) (map[string]string, error) {
	settings := make(map[string]string)
	if !isPostgresURL(text) {
		pairs, err := postgresPairs(text)
		if err != nil {
			return nil, err
		}
		for _, pair := range pairs {
			settings[pair.key] = pair.value
		}
		return settings, nil
	}
	u, err := cutPostgresURL(text)
	if err != nil {
		return nil, err
	}
	decode := func(what, encoded string) (string, error) {
		decoded, err := url.PathUnescape(encoded)
		if err != nil {
			return "", fmt.Errorf("the %s is not percent-encoded properly", what)
		}
		return decoded, nil
	}
	if u.hasUserinfo {
		user, password, _ := strings.Cut(u.userinfo, ":")
		if settings["user"], err = decode("user name", user); err != nil {
			return nil, err
		}
		if settings["password"], err = decode("password", password); err != nil {
			return nil, err
		}
	}
	var hosts, ports []string
	for address := range strings.SplitSeq(u.hosts, ",") {
		host, port := splitAddress(address)
		if host, err = decode("host", host); err != nil {
			return nil, err
		}
		hosts, ports = append(hosts, host), append(ports, port)
	}
	settings["host"], settings["port"] = strings.Join(hosts, ","), strings.Trim(strings.Join(ports, ","), ",")
	if settings["dbname"], err = decode("database", strings.TrimPrefix(u.path, "/")); err != nil {
		return nil, err
	}
	if u.query == "" {
		return settings, nil
	}
	for part := range strings.SplitSeq(u.query, "&") {
		key, value, _ := strings.Cut(part, "=")
		name, err := url.QueryUnescape(key)
		if err != nil {
			return nil, errors.New("a parameter of the URL is not percent-encoded properly")
		}
		if settings[name], err = url.QueryUnescape(value); err != nil {
			return nil, errors.New("a parameter of the URL is not percent-encoded properly")
		}
	}
	return settings, nil
}

// splitAddress cuts host:port; an IPv6 address stands in brackets.
func splitAddress(address string) (host, port string) {
	if strings.HasPrefix(address, "[") {
		if end := strings.Index(address, "]"); end > 0 {
			return address[1:end], strings.TrimPrefix(address[end+1:], ":")
		}
	}
	host, port, _ = strings.Cut(address, ":")
	return host, port
}

// postgresPair is one setting of the key=value form; start and end are the
// offsets of its value as written, quotes included.
type postgresPair struct {
	key, value string
	start, end int
}

func postgresPairs(text string) ([]postgresPair, error) {
	var pairs []postgresPair
	space := func(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }
	i := 0
	skip := func() {
		for i < len(text) && space(text[i]) {
			i++
		}
	}
	for {
		skip()
		if i == len(text) {
			break
		}
		start := i
		for i < len(text) && text[i] != '=' && !space(text[i]) {
			i++
		}
		key := text[start:i]
		skip()
		if key == "" || i == len(text) || text[i] != '=' {
			return nil, errDSN
		}
		i++
		skip()
		pair := postgresPair{key: key, start: i}
		var value strings.Builder
		quoted := i < len(text) && text[i] == '\''
		if quoted {
			i++
		}
		closed := !quoted
		for i < len(text) {
			c := text[i]
			if quoted && c == '\'' {
				i++
				closed = true
				break
			}
			if !quoted && space(c) {
				break
			}
			if c == '\\' && i+1 < len(text) {
				i++
				c = text[i]
			}
			value.WriteByte(c)
			i++
		}
		if !closed {
			return nil, errors.New("a quote is left open")
		}
		pair.value, pair.end = value.String(), i
		pairs = append(pairs, pair)
	}
	if len(pairs) == 0 {
		return nil, errDSN
	}
	return pairs, nil
}

// percentEncode writes value so that it stands for itself anywhere in a URL.
func percentEncode(value string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		c := value[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
	}
	return b.String()
}
