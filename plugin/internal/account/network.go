package account

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
)

// NetworkReason names, as the end of a sentence about the server, why it could
// not be asked. Texts of unknown errors are not passed on: client libraries put
// connection strings and values into them. own is asked first for what only the
// product's client library says; it returns "" for anything else, and may be nil.
func NetworkReason(err error, own func(error) string) string {
	if own != nil {
		if reason := own(err); reason != "" {
			return reason
		}
	}
	var (
		dns         *net.DNSError
		operation   *net.OpError
		certificate *tls.CertificateVerificationError
		authority   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		timeout     net.Error
	)
	switch {
	case errors.As(err, &hostname):
		return "its certificate is for another name"
	case errors.As(err, &authority):
		return "its certificate is signed by an unknown authority"
	case errors.As(err, &certificate):
		return "its certificate is not valid"
	case errors.As(err, &record):
		return "it does not speak TLS"
	case errors.As(err, &alert):
		return "it ended the TLS handshake; it may want a client certificate"
	case errors.As(err, &dns):
		return "its name does not resolve"
	case errors.Is(err, context.Canceled):
		return "the request was cancelled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "it did not answer in time"
	case errors.As(err, &operation):
		if operation.Err != nil {
			return operation.Op + ": " + operation.Err.Error()
		}
		return operation.Op
	default:
		return "the session broke off"
	}
}

// Unsent marks a driver's error as one from before anything was sent that changes
// something. Other errors, and nil, stay as they are.
func Unsent(err error) error {
	var e *Error
	if !errors.As(err, &e) || !e.Ambiguous {
		return err
	}
	known := *e
	known.Ambiguous = false
	return &known
}
