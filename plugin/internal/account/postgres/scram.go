package postgres

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

const (
	scramIterations = 4096 // PostgreSQL's own default
	scramSaltBytes  = 16
)

// iterationsOf is how often a password is stretched when so much is asked for.
func iterationsOf(asked int) int {
	if asked == 0 {
		return scramIterations
	}
	return asked
}

// scramVerifierOf computes what PostgreSQL stores for a password, in its own text
// form, so that the password itself is never sent. The password is one of
// [oneSpelling]: it is not normalised. iterations are 1 or more.
func scramVerifierOf(password string, iterations int) (string, error) {
	salt := make([]byte, scramSaltBytes)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make salt: %w", err)
	}
	return scramVerifierWith(password, salt, iterations)
}

func scramVerifierWith(password string, salt []byte, iterations int) (string, error) {
	salted, err := stretch(password, salt, iterations)
	if err != nil {
		return "", fmt.Errorf("derive key: %w", err)
	}
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s",
		iterations, encode(salt), encode(stored[:]), encode(mac(salted, "Server Key"))), nil
}
