package dialect

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// MySQLDSN is what a connection string of the Go driver for MySQL says,
//
//	[user[:password]@][net[(addr)]]/database[?parameters]
//
// with placeholders left as they are.
type MySQLDSN struct {
	// Host is a name or an address, or the path of a unix socket; then Port is 0.
	Host     string
	Port     int
	Database string
	// SSLMode is libpq's word for the parameter tls.
	SSLMode string
	// HasPassword says that it holds a password other than {{password}}.
	HasPassword bool
}

// mysqlPort is the default.
const mysqlPort = 3306

// ParseMySQLDSN reads a connection string. Errors do not repeat it.
func ParseMySQLDSN(text string) (MySQLDSN, error) {
	slash := strings.LastIndexByte(text, '/')
	if slash < 0 {
		return MySQLDSN{}, errors.New("is not of the form {{username}}:{{password}}@tcp(host:port)/database")
	}
	dsn := MySQLDSN{}
	address := text[:slash]
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		_, password, given := strings.Cut(address[:at], ":")
		dsn.HasPassword = given && password != "" && password != "{{password}}"
		address = address[at+1:]
	}
	if err := dsn.setAddress(address); err != nil {
		return MySQLDSN{}, err
	}
	database, parameters, _ := strings.Cut(text[slash+1:], "?")
	var err error
	if dsn.Database, err = url.PathUnescape(database); err != nil {
		return MySQLDSN{}, errors.New("the database name is not escaped as in a URL")
	}
	dsn.SSLMode, err = mysqlSSLMode(parameters)
	return dsn, err
}

// setAddress reads net(addr).
func (d *MySQLDSN) setAddress(text string) error {
	network, address, open := strings.Cut(text, "(")
	if open {
		closed := false
		if address, closed = strings.CutSuffix(address, ")"); !closed {
			return errors.New("the address is not closed by a parenthesis right before the database")
		}
	}
	switch network {
	case "", "tcp", "tcp4", "tcp6":
		d.Host, d.Port = "127.0.0.1", mysqlPort
		if address == "" {
			return nil
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(address, strconv.Itoa(mysqlPort)) // as the driver does
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return errors.New("the address is not host:port")
		}
		d.Host = host
		if d.Port, err = strconv.Atoi(port); err != nil || d.Port < 1 || d.Port > 65535 {
			return errors.New("the port is not a number from 1 to 65535")
		}
	case "unix":
		if d.Host = address; address == "" {
			d.Host = "/tmp/mysql.sock"
		}
	default:
		return errors.New("the network is none of tcp, tcp4, tcp6 and unix")
	}
	return nil
}

func mysqlSSLMode(parameters string) (string, error) {
	mode := "disable"
	for parameter := range strings.SplitSeq(parameters, "&") {
		key, value, _ := strings.Cut(parameter, "=")
		if key != "tls" {
			continue
		}
		switch strings.ToLower(value) {
		case "true", "1":
			mode = "verify-full"
		case "false", "0":
			mode = "disable"
		case "skip-verify":
			mode = "require"
		case "preferred":
			mode = "prefer"
		default:
			return "", errors.New("the parameter tls is none of true, false, skip-verify and preferred; use the tls_ fields for anything else")
		}
	}
	return mode, nil
}

// RedactMySQLDSN replaces a password by xxxxx; {{password}} stays. In text that is
// no connection string it hides whatever could be one.
func RedactMySQLDSN(text string) string {
	head := text
	if slash := strings.LastIndexByte(text, '/'); slash >= 0 {
		head = text[:slash]
	}
	at := strings.LastIndexByte(head, '@')
	if at < 0 {
		return text
	}
	user, password, given := strings.Cut(head[:at], ":")
	if !given || password == "" || password == "{{password}}" {
		return text
	}
	return user + ":xxxxx" + text[at:]
}
